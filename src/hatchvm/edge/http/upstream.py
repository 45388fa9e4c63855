"""The connection to a guest: a thin transport that hands every event to the client connection it serves."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio.trsock import TransportSocket
from collections.abc import Callable
from typing import Final, Protocol, cast

from hatchvm.edge.http.admission import Slot
from hatchvm.edge.http.pool import Pool, Target

_LAST_WORDS_BYTES: Final = 256 * 1024


def _never() -> bool:
    return False


class User(Protocol):
    """The client connection that an upstream connection serves."""

    def upstream_data(self, data: bytes) -> None: ...

    def upstream_eof(self) -> bool:
        """True: keep the other direction open."""

    def upstream_lost(self, *, broken: bool) -> None: ...

    def upstream_full(self, *, full: bool) -> None:
        """`full`: stop sending; else go on."""


class Upstream(asyncio.Protocol):
    """Serves one `user` at a time; without one it waits in the pool."""

    def __init__(self, target: Target, pool: Pool[Upstream], slot: Slot) -> None:
        self.target = target
        self.idle_since = 0.0
        self.user: User | None = None
        self.served = False  # it has carried a request before
        self._ended = False
        self.pool = pool
        self._slot: Slot | None = slot
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        #: True: it can carry nothing more.
        self.is_closing: Callable[[], bool] = _never

    @property
    def buffered_bytes(self) -> int:
        return self._transport.get_write_buffer_size()

    def write(self, data: bytes) -> None:
        if not self.is_closing():
            self._transport.write(data)

    def end(self) -> None:
        """No more bytes for the guest."""
        if not self.is_closing():
            self._ended = True
            self._transport.write_eof()

    def close(self) -> None:
        """Nobody waits for anything from the guest any more. What it was sent whole still reaches it."""
        self.user = None
        self._free_slot()
        if self._ended:
            self._transport.close()
        else:
            self._transport.abort()

    def pause(self) -> None:
        if not self.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if not self.is_closing():
            self._transport.resume_reading()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_closing = self._transport.is_closing

    def data_received(self, data: bytes) -> None:
        if self._slot:
            self._free_slot()
        if self.user:
            self.user.upstream_data(data)
        else:
            self.close()

    def eof_received(self) -> bool:
        return self.user is not None and self.user.upstream_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self._free_slot()
        if exc and self.user:
            self._hear_last_words(self.user)
        user, self.user = self.user, None
        if user:
            user.upstream_lost(broken=exc is not None)
        else:
            self.pool.discard(self)

    def pause_writing(self) -> None:
        if self.user:
            self.user.upstream_full(full=True)

    def resume_writing(self) -> None:
        if self.user:
            self.user.upstream_full(full=False)

    def _hear_last_words(self, user: User) -> None:
        """Pass on an answer that arrived before the connection broke.

        A guest that answers early and closes (413) resets the connection under the rest of the request. asyncio then
        gives up at the first failed write, without reading what is there; uvloop reads first.
        """
        sock = self._transport.get_extra_info("socket")
        if not isinstance(sock, TransportSocket):
            return
        with contextlib.suppress(OSError), sock.dup() as duplicate:
            words = duplicate.recv(_LAST_WORDS_BYTES)
            if words:
                user.upstream_data(words)

    def _free_slot(self) -> None:
        slot, self._slot = self._slot, None
        if slot:
            slot.leave()
