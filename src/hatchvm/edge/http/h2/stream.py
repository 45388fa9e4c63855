"""An HTTP/2 stream in the clothes of a connection, so that the one relay serves it like any HTTP/1.1 client.

What `ClientConnection` writes is decoded and sent as frames; `pause_reading` keeps back the stream's window;
`pause_writing` is called when the client's window leaves too much unsent. An answer ends the stream, and with it the
virtual connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final, Protocol

from h2.errors import ErrorCodes

from hatchvm.edge.http.h2.message import Data, End, Head, MessageReader, Part
from hatchvm.edge.http.h2.outlet import HIGH_BYTES, LOW_BYTES, Outlet
from hatchvm.edge.http.h2.session import STREAM_WINDOW_BYTES, Session
from hatchvm.edge.http.h2.translate import LAST_CHUNK, RequestHead, answer_fields, chunk


class Carrier(Protocol):
    """The real connection beneath."""

    session: Session

    @property
    def transport(self) -> asyncio.Transport: ...

    def send(self, stream: StreamTransport) -> None:
        """Send what `stream` has to say, now or as soon as there is room."""

    def credit(self, size: int, *, held: int) -> None:
        """The client may send `size` bytes more on all streams together; `held` more of them wait in here."""

    def ended(self, stream: StreamTransport) -> None:
        """Nothing more will be sent on it."""


class _Socket:
    """What a stream has in place of a socket. Options are the real connection's affair."""

    def setsockopt(self, *option: Any) -> None:
        return


_SOCKET: Final = _Socket()


class StreamTransport(asyncio.Transport):
    """One request and its answer. `connect` comes first."""

    def __init__(self, carrier: Carrier, stream_id: int, request: RequestHead) -> None:
        super().__init__()
        self.stream_id = stream_id
        self.outlet = Outlet(carrier.session, stream_id)
        self.answered = False  # a final answer was sent whole
        self.request_ended = False
        self._carrier = carrier
        self._chunked = request.chunked
        self._reader = MessageReader(answer=True, bodiless=request.method == b"HEAD")
        self._protocol: asyncio.Protocol
        self._closing = False
        self._gone = False
        self._reading = True
        self._full = False
        self._owed = 0  # bytes of the stream's window that were used and can be given back
        self._held: deque[tuple[bytes, int]] = deque()  # for the protocol, once it reads again; with their share of it

    def connect(self, protocol: asyncio.Protocol, head: bytes) -> None:
        self._protocol = protocol
        protocol.connection_made(self)
        protocol.data_received(head)

    # -- the client's frames

    def take(self, data: bytes, size: int) -> None:
        """A part of the body; `size`: what it took of the windows."""
        framed = (chunk(data) if self._chunked else data) if data else b""
        if self._closing:
            self._carrier.credit(size, held=0)
        elif self._reading and not self._held:
            self._carrier.credit(size, held=0)
            self._deliver(framed, size)
        else:
            self._carrier.credit(size, held=size)
            self._held.append((framed, size))

    def take_end(self, trailers: bytes) -> None:
        """The request is complete. `trailers`: with the blank line that closes them."""
        self.request_ended = True
        if not self._chunked:  # the length was told; what else there is to say has no place in HTTP/1.1
            return
        if self._reading and not self._held:
            self._deliver(LAST_CHUNK + trailers, 0)
        else:
            self._held.append((LAST_CHUNK + trailers, 0))

    def lose(self, error: Exception | None) -> None:
        """The stream is no more. May be repeated."""
        if self._gone:
            return
        self._gone = self._closing = self.outlet.done = True
        self._carrier.credit(0, held=-sum(size for _, size in self._held))
        self._held.clear()
        self._carrier.ended(self)
        self._protocol.connection_lost(error)

    # -- the way out

    def pump(self) -> int:
        """Send one frame. Returns its size, 0 if it must wait."""
        sent = self.outlet.pump()
        if self._full and self.outlet.size <= LOW_BYTES:
            self._full = False
            self._protocol.resume_writing()
        if self.outlet.done and not self.answered:
            self.answered = True
            self._finish()
        return sent

    def _finish(self) -> None:
        """The answer is out. A request that goes on nevertheless is told to stop (RFC 9113, 8.1)."""
        self._closing = True
        if not self.request_ended:
            self._carrier.session.reset_stream(self.stream_id, ErrorCodes.NO_ERROR)
        asyncio.get_running_loop().call_soon(self.lose, None)

    def _obey(self, part: Part) -> None:
        match part:
            case Head() as head:
                end = head.last
                self._carrier.session.send_headers(self.stream_id, answer_fields(head), end_stream=end)
                self.outlet.done = end
            case Data(data):
                self.outlet.put(data)
            case End(trailers):
                self.outlet.finish(trailers)

    # -- asyncio.Transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return _SOCKET if name == "socket" else self._carrier.transport.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._closing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing:
            return
        self._send(self._reader.feed(bytes(data)))

    def write_eof(self) -> None:
        self.close()

    def close(self) -> None:
        if self._closing:
            return
        self._send(self._reader.eof())
        if self._reader.done:
            self._closing = True  # what waits still goes out
        else:
            self.abort()

    def abort(self) -> None:
        if self._gone or self.outlet.done:
            return
        self._closing = self.outlet.done = True
        self._carrier.session.reset_stream(self.stream_id, ErrorCodes.INTERNAL_ERROR)
        self._carrier.send(self)
        asyncio.get_running_loop().call_soon(self.lose, None)

    def get_write_buffer_size(self) -> int:
        return self.outlet.size

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        asyncio.get_running_loop().call_soon(self._deliver_held)

    # -- inside

    def _send(self, parts: list[Part]) -> None:
        for part in parts:
            self._obey(part)
        self._carrier.send(self)
        if not self._full and self.outlet.size > HIGH_BYTES:
            self._full = True
            self._protocol.pause_writing()

    def _deliver_held(self) -> None:
        while self._held and self._reading and not self._closing:
            data, size = self._held.popleft()
            self._carrier.credit(0, held=-size)
            self._deliver(data, size)
        if not self._gone:
            self._carrier.send(self)  # windows, if nothing else

    def _deliver(self, data: bytes, size: int) -> None:
        if data:
            self._protocol.data_received(data)
        self._owed += size
        if self._owed >= STREAM_WINDOW_BYTES // 2 and not self.request_ended and not self._closing:
            self._carrier.session.increment_flow_control_window(self._owed, self.stream_id)
            self._owed = 0
