"""A client's HTTP/2 connection: every stream is served by a `ClientConnection` of its own.

Nothing is kept without bound: a paused stream keeps no more than its window; while all of them together keep more
than a few windows, the connection's own is not given back; a client that does not read its answers gets no more frames,
and one that does not read the replies to its own (PING, SETTINGS) is not read either.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final, cast

from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RequestReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import ProtocolError

from hatchvm.edge.http.connection import ClientConnection, House
from hatchvm.edge.http.h2.session import CONNECTION_WINDOW_BYTES, Session
from hatchvm.edge.http.h2.stream import StreamTransport
from hatchvm.edge.http.h2.translate import Malformed, request_head, trailer_section

#: The streams together may hold back this much before the connection's window is held back as well.
_MAX_HELD_BYTES: Final = 4 * CONNECTION_WINDOW_BYTES
_FLUSH_BYTES: Final = 64 * 1024
#: Answers stop at the transport's own mark; what is beyond this are replies to a client that does not read them.
_MAX_REPLIES_BYTES: Final = 256 * 1024


class H2Connection(asyncio.Protocol):
    """One client with up to a hundred requests at a time."""

    def __init__(self, house: House) -> None:
        self.session = Session(self._handle, client_side=False)
        self._house = house
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._streams: dict[int, StreamTransport] = {}
        self._sending: dict[int, StreamTransport] = {}  # have something to say; those that wait longest come first
        self._full = False
        self._reading = True
        self._busy = False  # more may follow: flush later
        self._draining = False
        self._owed = 0
        self._held = 0
        self._since = house.clock.monotonic()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._house.opened(self)
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        self._busy = True
        try:
            self.session.receive(data, self._house.clock.monotonic())
        except ProtocolError:
            self._end()
        finally:
            self._busy = False
        self._pump()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose_streams(exc)
        self._house.closed(self)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        if not self._reading and not self._transport.is_closing():
            self._reading = True
            self._transport.resume_reading()
        self._pump()

    # -- the proxy

    def drain(self) -> None:
        """Let the streams under way end, then close."""
        if self._draining or self._transport.is_closing():
            return
        self._draining = True
        self._flush()
        self._transport.write(self.session.farewell())
        self._close_if_drained()

    def abort(self) -> None:
        self._transport.abort()

    @property
    def buffered_bytes(self) -> int:
        """Without what the streams count as theirs."""
        return self._transport.get_write_buffer_size() + self._held

    def look(self, now: float) -> None:
        """Act on what has lasted too long. The streams' own waits are looked after one by one."""
        silent_s, limits = now - self._since, self._house.limits
        if self._transport.is_closing():
            if silent_s >= limits.linger_timeout_s:
                self._transport.abort()
        elif silent_s >= limits.keep_alive_timeout_s:
            if not self._streams:
                self.drain()
            elif all(stream.is_closing() for stream in self._streams.values()):
                self._transport.abort()  # answers that nobody fetches

    # -- stream.Carrier

    @property
    def transport(self) -> asyncio.Transport:
        return self._transport

    def send(self, stream: StreamTransport) -> None:
        self._sending[stream.stream_id] = stream
        if not self._busy:
            self._pump(only=stream)

    def credit(self, size: int, *, held: int) -> None:
        self._held += held
        self._owed += size
        if self._transport.is_closing():
            return
        if self._owed >= CONNECTION_WINDOW_BYTES // 4 and self._held <= _MAX_HELD_BYTES:
            self.session.increment_flow_control_window(self._owed)
            self._owed = 0

    def ended(self, stream: StreamTransport) -> None:
        self._streams.pop(stream.stream_id, None)
        self._sending.pop(stream.stream_id, None)
        self._since = self._house.clock.monotonic()
        self.session.resets.earn(1 if stream.answered else 0)
        self.session.nuisance.earn(20)  # what clients like to say about a request: priorities, windows
        self._close_if_drained()

    # -- events

    def _handle(self, event: Event) -> None:
        match event:
            case RequestReceived():
                self._begin(event)
            case StreamReset(stream_id=stream_id):
                if stream := self._streams.get(stream_id):
                    stream.lose(ConnectionResetError())
            case WindowUpdated():
                return  # `_pump` comes anyway
            case ConnectionTerminated():
                self._draining = True
                self._close_if_drained()
            case DataReceived() | TrailersReceived() | StreamEnded():
                self._handle_body(event)

    def _begin(self, event: RequestReceived) -> None:
        stream_id = event.stream_id
        if self._draining:
            self.session.reset_stream(stream_id, ErrorCodes.REFUSED_STREAM)
            return
        try:
            request = request_head(event.headers, ended=event.stream_ended is not None)
        except Malformed:
            self._refuse(stream_id)
            return
        stream = self._streams[stream_id] = StreamTransport(self, stream_id, request)
        stream.connect(ClientConnection(self._house), request.data)

    def _handle_body(self, event: DataReceived | TrailersReceived | StreamEnded) -> None:
        stream = self._streams.get(event.stream_id)
        match event:
            case DataReceived(data=data, flow_controlled_length=size):
                if stream:
                    stream.take(data, size)
                else:
                    self.credit(size, held=0)
            case TrailersReceived(headers=headers) if stream:
                try:
                    stream.take_end(trailer_section(headers))
                except Malformed:
                    stream.lose(None)
                    self._refuse(event.stream_id)
            case StreamEnded() if stream and not stream.request_ended:
                stream.take_end(b"\r\n")

    def _refuse(self, stream_id: int) -> None:
        if not self.session.refuse(stream_id, ErrorCodes.PROTOCOL_ERROR):
            self.session.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
            self._end()

    # -- the way out

    def _pump(self, only: StreamTransport | None = None) -> None:
        """Let streams send a frame each in turn until nothing more can go; then flush."""
        self._busy = True
        turns = [only] if only else list(self._sending.values())
        unflushed = 0
        while turns and not self._full:
            stream = turns.pop(0)
            sent = stream.pump()
            if sent:
                unflushed += sent
                turns.append(stream)
                self._sending[stream.stream_id] = self._sending.pop(stream.stream_id, stream)
            elif stream.outlet.idle:
                self._sending.pop(stream.stream_id, None)
            if unflushed >= _FLUSH_BYTES:
                self._flush()
                unflushed = 0
        self._busy = False
        self._flush()

    def _flush(self) -> None:
        data = self.session.data_to_send()
        if not data or self._transport.is_closing():
            return
        self._since = self._house.clock.monotonic()
        self._transport.write(data)
        if self._reading and self._transport.get_write_buffer_size() > _MAX_REPLIES_BYTES:
            self._reading = False
            self._transport.pause_reading()

    def _close_if_drained(self) -> None:
        if self._draining and not self._streams and not self._transport.is_closing():
            self._flush()
            self._transport.close()

    def _end(self) -> None:
        """The client went against the protocol, and has been told."""
        self._flush()
        self._transport.close()
        self._lose_streams(ConnectionResetError())

    def _lose_streams(self, error: Exception | None) -> None:
        for stream in list(self._streams.values()):
            stream.lose(error)
