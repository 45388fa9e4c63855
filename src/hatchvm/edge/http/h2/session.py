"""The HTTP/2 library's connection, with what it lacks for one that faces strangers.

- Floods: frames that bring nothing (PING, SETTINGS, PRIORITY, empty DATA, DATA for a stream that was reset, …) and
  streams that are opened to be reset (CVE-2023-44487) empty a budget; an empty one ends the connection with
  ENHANCE_YOUR_CALM. The library itself bounds CONTINUATION frames (64) and header lists.
- A frame longer than agreed is refused when its length is known to be exceeded, not when all of it is here.
- A GOAWAY lets streams under way end. The library would treat the connection as closed from there on.

Fields are checked by `translate`, so that a malformed message costs its stream and not the connection; that a body is
as long as it was said to be is left to the library, for which a lie ends the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, Event, StreamReset
from h2.exceptions import DenialOfServiceError, FrameTooLargeError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, HeadersFrame

from hatchvm.edge.http.h2.budget import Budget

#: What a peer may send on one stream before we have used it.
STREAM_WINDOW_BYTES: Final = 256 * 1024
#: Likewise on all streams together.
CONNECTION_WINDOW_BYTES: Final = 1024 * 1024
_MAX_STREAMS: Final = 100
#: Told to peers. The relay refuses larger heads with a 431; only twice the size ends the connection.
_MAX_HEADER_LIST_BYTES: Final = 64 * 1024
_FRAME_HEAD_BYTES: Final = 9
_DEFAULT_WINDOW_BYTES: Final = 65_535


class Session(H2Connection):
    """One connection's protocol state. Greets its peer when it is made."""

    #: How many streams are remembered after their end, so that late frames do no harm.
    MAX_CLOSED_STREAMS = 1024

    def __init__(self, handle: Callable[[Event], None], *, client_side: bool) -> None:
        """`handle` gets every event before the next frame is looked at: an answer never meets a stream that is gone."""
        super().__init__(
            H2Configuration(
                client_side=client_side,
                validate_inbound_headers=False,
                normalize_inbound_headers=False,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self._handle = handle
        self.nuisance = Budget(capacity=1000, per_s=100)
        self.resets = Budget(capacity=200, per_s=30)
        self.local_settings = Settings(
            client=client_side,
            initial_values={
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
                SettingCodes.MAX_CONCURRENT_STREAMS: _MAX_STREAMS,
                SettingCodes.MAX_HEADER_LIST_SIZE: _MAX_HEADER_LIST_BYTES,
                **({SettingCodes.ENABLE_PUSH: 0} if client_side else {}),
            },
        )
        self.decoder.max_header_list_size = 2 * _MAX_HEADER_LIST_BYTES
        self.initiate_connection()
        self.increment_flow_control_window(CONNECTION_WINDOW_BYTES - _DEFAULT_WINDOW_BYTES)

    def receive(self, data: bytes, now: float) -> None:
        """Handle the peer's bytes, at `now` (monotonic seconds). Raises ProtocolError: a GOAWAY is in `data_to_send`,
        and the connection is of no further use."""
        self.nuisance.tick(now)
        self.resets.tick(now)
        self.receive_data(data)
        # The library looks at a frame's length only when all of the frame is here, which may be 16 MiB.
        if len(self.incoming_buffer._data) > self.max_inbound_frame_size + _FRAME_HEAD_BYTES:
            self.close_connection(ErrorCodes.FRAME_SIZE_ERROR)
            raise FrameTooLargeError("a frame is longer than agreed")

    def farewell(self) -> bytes:
        """A GOAWAY after which the streams under way still end. (The library's own would forbid them to.)"""
        return GoAwayFrame(0, last_stream_id=self.highest_inbound_stream_id).serialize()

    def refuse(self, stream_id: int, code: ErrorCodes) -> bool:
        """Reset a stream for its peer's fault. False: it was at fault too often."""
        self.reset_stream(stream_id, code)
        return self.resets.spend(1)

    def _receive_frame(self, frame: Frame) -> list[Event]:
        if not self._useful(frame) and not self.nuisance.spend(1):
            raise DenialOfServiceError("too many frames that bring nothing")
        for event in super()._receive_frame(frame):
            # Whether the peer reset it or made us do so (CVE-2025-8671).
            if isinstance(event, StreamReset) and not self.resets.spend(1):
                raise DenialOfServiceError("too many streams were reset")
            self._handle(event)
        return []

    def _useful(self, frame: Frame) -> bool:
        if isinstance(frame, DataFrame):
            stream = self.streams.get(frame.stream_id)
            return stream is not None and not stream.closed and bool(frame.data)
        return isinstance(frame, HeadersFrame) and frame.stream_id > self.highest_inbound_stream_id

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        event = ConnectionTerminated()
        event.last_stream_id = frame.last_stream_id
        return [], [event]
