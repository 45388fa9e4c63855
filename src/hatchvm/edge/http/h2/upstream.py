"""The connection to a guest that speaks HTTP/2 only, as gRPC servers do: behaves like `Upstream` to the relay.

What the relay writes is HTTP/1.1; here it becomes one HTTP/2 stream at a time (in clear text, with prior knowledge),
and the guest's answer becomes a chunked HTTP/1.1 answer with its trailers. A guest that must stop hears so by the end
of the connection.
"""

from __future__ import annotations

import asyncio
from typing import Final

from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    InformationalResponseReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError

from hatchvm.edge.http.admission import Slot
from hatchvm.edge.http.h2.message import Data, End, Head, MessageReader
from hatchvm.edge.http.h2.outlet import HIGH_BYTES, LOW_BYTES, Outlet
from hatchvm.edge.http.h2.session import CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES, Session
from hatchvm.edge.http.h2.translate import LAST_CHUNK, Malformed, answer_head, chunk, request_fields, trailer_section
from hatchvm.edge.http.pool import Pool, Target
from hatchvm.edge.http.proto.refusal import Refusal
from hatchvm.edge.http.upstream import Upstream

_NOT_HTTP2: Final = Refusal(status=502, sentence="upstream does not speak HTTP/2, which gRPC needs")


class H2Upstream(Upstream):
    """Serves one `user` at a time; without one it waits in the pool."""

    def __init__(self, target: Target, pool: Pool[Upstream], slot: Slot) -> None:
        super().__init__(target, pool, slot)
        self._session = Session(self._handle, client_side=True)
        self._request = MessageReader(answer=False)
        self._stream_id = 0
        self._outlet: Outlet | None = None  # of the exchange under way
        self._answer: list[bytes] = []  # for the user, after what arrived has been read
        self._answered = False  # the answer is complete
        self._greeted = False
        self._leaving = False  # the guest accepts no more requests here
        self._broken = False
        self._paused = False  # the user takes no more for now
        self._congested = False  # the network takes no more for now
        self._full = False  # the user was asked to wait
        self._owed = 0  # bytes of the connection's window that can be given back
        self._owed_stream = 0

    def _spent(self) -> bool:
        return self._transport.is_closing() or (self._leaving and self.user is None)

    @property
    def buffered_bytes(self) -> int:
        return super().buffered_bytes + (self._outlet.size if self._outlet else 0)

    def write(self, data: bytes) -> None:
        if self.is_closing():
            return
        if self._request.done:
            self._request = MessageReader(answer=False)
        try:
            for part in self._request.feed(data):
                self._obey(part)
            self._pump()
        except ProtocolError:  # the guest takes no streams
            self._transport.abort()

    def end(self) -> None:
        """HTTP/2 tells the end of a request in its stream."""

    def close(self) -> None:
        self.user = None
        self._free_slot()
        self._transport.abort()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        if not self.is_closing():
            self._give_back()
            self._flush()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.is_closing = self._spent
        self._flush()

    def data_received(self, data: bytes) -> None:
        self._free_slot()
        if not self._greeted and data.startswith(b"H"):  # of HTTP/1.1; a frame would be of 4 MiB
            self._broken = True
            self._answer = [_NOT_HTTP2.answer(close=True)]
        else:
            self._read(data)
        self._greeted = True
        answer, self._answer = self._answer, []
        if answer and self.user:
            self.user.upstream_data(b"".join(answer))
        if self._broken or self.is_closing():
            self._transport.abort()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._free_slot()
        user, self.user = self.user, None
        if user:
            user.upstream_lost(broken=True)
        else:
            self.pool.discard(self)

    def pause_writing(self) -> None:
        self._congested = True

    def resume_writing(self) -> None:
        self._congested = False
        self._pump()

    # -- to the guest

    def _obey(self, part: Head | Data | End) -> None:
        match part:
            case Head() as head:
                self._begin(head)
            case Data(data) if self._outlet:
                self._outlet.put(data)
            case End(trailers) if self._outlet:
                self._outlet.finish(trailers)

    def _begin(self, head: Head) -> None:
        self._stream_id = self._session.get_next_available_stream_id()
        self._session.send_headers(self._stream_id, request_fields(head), end_stream=head.last)
        self._outlet = Outlet(self._session, self._stream_id)
        self._outlet.done = head.last
        self._answered = self._full = False
        self._owed_stream = 0

    def _pump(self) -> None:
        outlet = self._outlet
        while outlet and not self._congested and outlet.pump():
            self._flush()
        self._flush()
        if not outlet or not self.user:
            return
        if outlet.size > HIGH_BYTES and not self._full:
            self._full = True
            self.user.upstream_full(full=True)
        elif outlet.size <= LOW_BYTES and self._full:
            self._full = False
            self.user.upstream_full(full=False)

    def _flush(self) -> None:
        data = self._session.data_to_send()
        if data and not self._transport.is_closing():
            self._transport.write(data)

    # -- from the guest

    def _read(self, data: bytes) -> None:
        try:
            self._session.receive(data, asyncio.get_running_loop().time())
            self._give_back()
            self._pump()
        except (ProtocolError, Malformed):
            self._broken = True

    def _handle(self, event: Event) -> None:
        match event:
            case InformationalResponseReceived(headers=headers):
                self._answer.append(answer_head(headers, ended=False))
            case ResponseReceived(headers=headers, stream_ended=ended):
                self._answered = ended is not None
                self._answer.append(answer_head(headers, ended=self._answered))
            case DataReceived(data=data, flow_controlled_length=size):
                self._owed += size
                self._owed_stream += size
                if data:
                    self._answer.append(chunk(data))
            case TrailersReceived(headers=headers):
                self._answered = True
                self._answer.append(LAST_CHUNK + trailer_section(headers))
            case StreamEnded() if not self._answered:
                self._answered = True
                self._answer.append(LAST_CHUNK + b"\r\n")
            case StreamReset():
                self._stop()
            case ConnectionTerminated(last_stream_id=last):
                self._leaving = True
                self._broken = self._broken or (last or 0) < self._stream_id

    def _stop(self) -> None:
        """The guest wants no more of this exchange. It may have said all it had to (RFC 9113, 8.1)."""
        self._broken = self._broken or not self._answered
        if self._outlet:
            self._outlet.done = True

    def _give_back(self) -> None:
        """What was passed on no longer counts against the guest's windows."""
        if self._owed >= CONNECTION_WINDOW_BYTES // 4:
            self._session.increment_flow_control_window(self._owed)
            self._owed = 0
        if self._owed_stream >= STREAM_WINDOW_BYTES // 2 and not (self._paused or self._answered):
            self._session.increment_flow_control_window(self._owed_stream, self._stream_id)
            self._owed_stream = 0
