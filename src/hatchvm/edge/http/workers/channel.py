"""Packets between the daemon and a worker, with a socket in one now and then: AF_UNIX, SOCK_SEQPACKET.

Packets keep their bounds and their order; the end of either process is the end of the channel. What the other side does
not read yet waits here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from array import array
from collections import deque
from typing import Final, Protocol

from hatchvm.base.errors import Invalid
from hatchvm.edge.http.workers.wire import MAX_BYTES

#: So many packets are handled before others get the loop.
_AT_ONCE: Final = 64
_ROOM_FOR_SOCKETS: Final = socket.CMSG_SPACE(2 * array("i").itemsize)
_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL


class End(Protocol):
    """Who hears what comes out of a channel."""

    def heard(self, packet: bytes, passed: socket.socket | None) -> None:
        """A packet; `passed` is the hearer's to close. Raises Invalid if the other side must not say that."""

    def lost(self, why: str) -> None:
        """The other side closed it (`why` is empty), or said what nobody may say. Called once, never after `close`."""


def pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a new channel."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Channel:
    """One end, inside an event loop."""

    def __init__(self, sock: socket.socket, end: End) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._end = end
        self._queue: deque[tuple[bytes, socket.socket | None]] = deque()
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._room = asyncio.Event()
        self._room.set()
        self._loop.add_reader(sock.fileno(), self.read)

    async def room(self) -> None:
        """Return when the other side has read enough for the next packet, or never will."""
        await self._room.wait()

    def send(self, packet: bytes, passed: socket.socket | None = None) -> None:
        """Send it, or keep it until it can be sent; `passed` goes to the other side and is closed here."""
        if not self._open:
            _close(passed)
        elif self._queue:
            self._queue.append((packet, passed))
        elif not self._sent(packet, passed):
            self._queue.append((packet, passed))
            self._room.clear()
            self._loop.add_writer(self._sock.fileno(), self._write)

    def read(self) -> None:
        """Hear what has come. Called by the loop; whoever is about to judge the other side's silence calls it too."""
        try:
            for _ in range(_AT_ONCE):
                if not self._open:
                    return
                packet, passed = self._receive()
                if not packet:
                    self._lose("")
                    return
                self._end.heard(packet, passed)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(str(error))
        except Invalid as error:
            self._lose(f"{error}: {error.detail}")

    def close(self) -> None:
        """Hear and say nothing more."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            self._sock.close()
            self._room.set()
            while self._queue:
                _close(self._queue.popleft()[1])

    def _receive(self) -> tuple[bytes, socket.socket | None]:
        packet, extra, flags, _ = self._sock.recvmsg(MAX_BYTES, _ROOM_FOR_SOCKETS, _FLAGS | socket.MSG_CMSG_CLOEXEC)
        descriptors = [fd for level, kind, data in extra for fd in _descriptors(level, kind, data)]
        try:
            if len(descriptors) > 1 or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise Invalid("a packet is too large", detail=f"{len(packet)} bytes, {len(descriptors)} descriptors")
            return packet, socket.socket(fileno=descriptors[0]) if descriptors else None
        except (OSError, Invalid):
            for fd in descriptors:
                os.close(fd)
            raise

    def _sent(self, packet: bytes, passed: socket.socket | None) -> bool:
        """False: there is no room. What cannot be sent at all is dropped: the channel ends then."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [passed.fileno()]))] if passed else []
        try:
            self._sock.sendmsg([packet], rights, _FLAGS)
        except BlockingIOError:
            return False
        except OSError:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        _close(passed)
        return True

    def _write(self) -> None:
        while self._queue:
            if not self._sent(*self._queue[0]):
                return
            self._queue.popleft()
        self._room.set()
        self._loop.remove_writer(self._sock.fileno())

    def _lose(self, why: str) -> None:
        if self._open:
            self.close()
            self._end.lost(why)


def _descriptors(level: int, kind: int, data: bytes) -> list[int]:
    if (level, kind) != (socket.SOL_SOCKET, socket.SCM_RIGHTS):
        return []
    found = array("i")
    found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def _close(sock: socket.socket | None) -> None:
    if sock is not None:
        sock.close()
