"""What one stream still has to send, held back by its peer's flow control."""

from __future__ import annotations

from collections import deque
from typing import Final

from hatchvm.edge.http.h2.message import Fields
from hatchvm.edge.http.h2.session import Session

#: With more than this waiting, whoever writes is asked to pause; with no more than the other, to go on.
HIGH_BYTES: Final = 64 * 1024
LOW_BYTES: Final = 16 * 1024


class Outlet:
    """The body of one message and its end. Its head has been sent."""

    def __init__(self, session: Session, stream_id: int) -> None:
        self.size = 0  # bytes that wait
        self.done = False  # the end has been sent
        self._session = session
        self._stream_id = stream_id
        self._waiting: deque[memoryview] = deque()
        self._ended = False
        self._trailers: Fields = []

    @property
    def idle(self) -> bool:
        """Nothing waits to be sent."""
        return self.done or not (self._waiting or self._ended)

    def put(self, data: bytes) -> None:
        self._waiting.append(memoryview(data))
        self.size += len(data)

    def finish(self, trailers: Fields) -> None:
        """Nothing follows but `trailers`, if there are any."""
        self._ended = True
        self._trailers = trailers

    def pump(self) -> int:
        """Send a frame, as far as the windows allow. Returns how much went: 0 if nothing can."""
        if self.done:
            return 0
        if self._waiting:
            return self._send_data()
        return self._send_end() if self._ended else 0

    def _send_data(self) -> int:
        session = self._session
        room = min(session.local_flow_control_window(self._stream_id), session.max_outbound_frame_size)
        if room <= 0:
            return 0
        data = self._waiting.popleft()
        if len(data) > room:
            self._waiting.appendleft(data[room:])
            data = data[:room]
        self.size -= len(data)
        self.done = self._ended and not self._waiting and not self._trailers
        session.send_data(self._stream_id, bytes(data), end_stream=self.done)
        session.nuisance.earn(2)  # the peer may answer with a WINDOW_UPDATE for the stream and one for the connection
        return len(data)

    def _send_end(self) -> int:
        if self._trailers:
            self._session.send_headers(self._stream_id, self._trailers, end_stream=True)
        elif self._session.local_flow_control_window(self._stream_id) < 0:  # the peer has made its windows smaller
            return 0
        else:
            self._session.send_data(self._stream_id, b"", end_stream=True)
        self.done = True
        return 1
