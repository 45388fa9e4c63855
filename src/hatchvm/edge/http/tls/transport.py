"""TLS as a layer of its own: a protocol to the TCP transport below, a transport to the protocol above.

asyncio's and uvloop's own TLS transports cannot end one direction (`write_eof`), wait for the client before they close,
and keep a buffer of 256 KiB for every asyncio connection. Here both directions end on their own, as they do over TCP,
so nothing above needs to know that there is TLS below.

A client's close_notify ends its stream. So does the end of its TCP stream without one, which many clients leave out:
HTTP's own framing tells a truncated message from a whole one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any, Final, cast

from hatchvm.edge.http.proto.refusal import Refusal

#: The most that one record holds.
_RECORD_BYTES: Final = 16 * 1024
#: OpenSSL's memory BIOs keep the room that they once needed, so they are given this much at a time.
_PIECE_BYTES: Final = 4 * _RECORD_BYTES
#: OpenSSL's word for a plain HTTP request where a handshake should begin.
_PLAIN: Final = "HTTP_REQUEST"
_SPEAK_TLS: Final = Refusal(status=400, sentence="this port speaks TLS; ask for https instead of http")


class TLSTransport(asyncio.Transport, asyncio.Protocol):
    """One connection, server side. The protocol above is made when the handshake is done, and sees nothing before."""

    def __init__(
        self,
        context: ssl.SSLContext,
        factory: Callable[[], asyncio.Protocol],
        handshakes: set[TLSTransport],
        *,
        handshake_timeout_s: float,
    ) -> None:
        """`handshakes`: where this connection is found until its handshake is done."""
        super().__init__()
        self._factory = factory
        self._handshakes = handshakes
        self._handshake_timeout_s = handshake_timeout_s
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._tcp: asyncio.Transport = cast(asyncio.Transport, None)
        self._timer: asyncio.TimerHandle | None = None
        self._above: asyncio.BaseProtocol | None = None
        self._ended = False  # we said close_notify
        self._peer_ended = False

    # -- asyncio.Protocol: to TCP

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._tcp = cast(asyncio.Transport, transport)
        self._handshakes.add(self)
        self._timer = asyncio.get_running_loop().call_later(self._handshake_timeout_s, self._tcp.abort)

    def data_received(self, data: bytes) -> None:
        if self._peer_ended or self._tcp.is_closing():
            return
        plain: list[bytes] = []
        try:
            for start in range(0, len(data), _PIECE_BYTES):
                self._incoming.write(data[start : start + _PIECE_BYTES])
                if self._above or self._shake_hands():
                    self._decrypt(plain)
        except ssl.SSLError as error:
            self._fail(error, plain)
            return
        self._flush()
        self._deliver(plain)
        self._pass_close_notify()

    def eof_received(self) -> bool:
        if self._peer_ended:  # and what is above wanted to go on
            return True
        self._peer_ended = True
        return self._pass_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle()
        if self._above:
            self._above.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._above:
            self._above.pause_writing()

    def resume_writing(self) -> None:
        if self._above:
            self._above.resume_writing()

    # -- asyncio.Transport: to the protocol above

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._ended or self._tcp.is_closing():
            return
        view = memoryview(data)
        try:
            for start in range(0, len(view), _RECORD_BYTES):
                self._tls.write(view[start : start + _RECORD_BYTES])
                if self._outgoing.pending >= _PIECE_BYTES:
                    self._flush()
        except ssl.SSLError:  # amid a key update that the client left half said: no honest one does
            self._tcp.abort()
            return
        self._flush()

    def write_eof(self) -> None:
        self._end()
        self._tcp.write_eof()

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        """Say close_notify once everything is written, and wait for nobody's."""
        if not self._tcp.is_closing():
            self._end()
            self._tcp.close()

    def abort(self) -> None:
        self._tcp.abort()

    def is_closing(self) -> bool:
        return self._tcp.is_closing()

    def is_reading(self) -> bool:
        return self._tcp.is_reading()

    def pause_reading(self) -> None:
        self._tcp.pause_reading()

    def resume_reading(self) -> None:
        self._tcp.resume_reading()

    def get_write_buffer_size(self) -> int:
        return self._tcp.get_write_buffer_size()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._tcp.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._tcp.set_write_buffer_limits(high, low)

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._above is not None
        return self._above

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._above = protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`ssl_object`, or what TCP knows under that name."""
        return self._tls if name == "ssl_object" else self._tcp.get_extra_info(name, default)

    # -- between the two

    def _shake_hands(self) -> bool:
        """Whether the handshake is done."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self._settle()
        self._flush()
        self._above = self._factory()
        self._above.connection_made(self)
        return True

    def _decrypt(self, plain: list[bytes]) -> None:
        """Append what the whole records in `_incoming` hold; note the client's close_notify."""
        while self._incoming.pending and not self._peer_ended:
            try:
                piece = self._tls.read(_RECORD_BYTES)
            except ssl.SSLWantReadError:
                return
            except ssl.SSLZeroReturnError:  # rather than no bytes, once we have ended as well
                piece = b""
            if piece:
                plain.append(piece)
            else:
                self._peer_ended = True

    def _fail(self, error: ssl.SSLError, plain: list[bytes]) -> None:
        """What came is not TLS, or not what was agreed upon. OpenSSL has the alert ready that says so."""
        if self._above is None and error.reason == _PLAIN:
            self._outgoing.read()
            self._tcp.write(_SPEAK_TLS.answer(close=True))
        self._flush()
        if self._above:
            self._deliver(plain)
            self._tcp.abort()  # whoever is above must not wait for such a client to read
        else:
            self._tcp.close()

    def _deliver(self, plain: list[bytes]) -> None:
        if plain and not self._tcp.is_closing():
            cast(asyncio.Protocol, self._above).data_received(plain[0] if len(plain) == 1 else b"".join(plain))

    def _pass_close_notify(self) -> None:
        if self._peer_ended and not self._tcp.is_closing() and not self._pass_eof():
            self.close()

    def _pass_eof(self) -> bool:
        """Whether the protocol above wants to go on writing."""
        return self._above is not None and bool(cast(asyncio.Protocol, self._above).eof_received())

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        with contextlib.suppress(ssl.SSLError):  # it wants the client's close_notify too, which nobody waits for
            self._tls.unwrap()
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._tcp.write(self._outgoing.read())

    def _settle(self) -> None:
        """The handshake is done, or never will be."""
        self._handshakes.discard(self)
        if self._timer:
            self._timer.cancel()
            self._timer = None
