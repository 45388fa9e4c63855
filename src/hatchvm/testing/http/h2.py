"""An HTTP/2 client for stories: the library's own connection on a wire, driven by the test."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.errors import ErrorCodes
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

from hatchvm.testing.stage import Stage, Wire

Fields = list[tuple[bytes, bytes]]


@dataclass
class Answer:
    """What arrived on one stream so far."""

    interim: list[Fields] = field(default_factory=list)
    fields: Fields = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    trailers: Fields = field(default_factory=list)
    ended: bool = False
    reset: ErrorCodes | int | None = None

    @property
    def status(self) -> int:
        return int(dict(self.fields)[b":status"])


class H2Client:
    """Sends what it is told, unchecked, and gathers answers. `generous`: gives windows back as bytes come."""

    def __init__(self, wire: Wire, *, generous: bool = True) -> None:
        config = H2Configuration(
            header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False
        )
        self.wire = wire
        self.conn = H2Connection(config)
        self.answers: dict[int, Answer] = {}
        self.goaway: ErrorCodes | int | None = None
        self.closed = False
        self._generous = generous

    @classmethod
    async def open(cls, stage: Stage, *, generous: bool = True) -> H2Client:
        client = cls(await stage.client(), generous=generous)
        client.conn.initiate_connection()
        await client.flush()
        return client

    async def flush(self) -> None:
        await self.wire.send(self.conn.data_to_send())

    async def ask(self, *, end: bool = True, fields: Iterable[tuple[str, str]] = (), **pseudo: str) -> int:
        """Open a stream; `pseudo` replaces pseudo-header fields, an empty one is left out."""
        said = {"method": "GET", "scheme": "http", "authority": "app.hatch.local", "path": "/"} | pseudo
        headers = [(f":{name}", value) for name, value in said.items() if value]
        stream_id = self.conn.get_next_available_stream_id()
        self.conn.send_headers(stream_id, [*headers, *fields], end_stream=end)
        self.answers[stream_id] = Answer()
        await self.flush()
        return stream_id

    async def say(self, stream_id: int, data: bytes, *, end: bool = False) -> None:
        """A part of a body, as far as the windows allow at once."""
        self.conn.send_data(stream_id, data, end_stream=end)
        await self.flush()

    async def upload(self, stream_id: int, size: int) -> int:
        """Send up to `size` bytes of a body, whose end this is not; stop when the proxy takes no more. Returns how
        many went."""
        sent = quiet = 0
        while sent < size and quiet < 300:
            room = min(self.conn.local_flow_control_window(stream_id), 16_384, size - sent)
            if room:
                await self.say(stream_id, bytes(room))
                sent, quiet = sent + room, 0
            try:
                async with asyncio.timeout(0):
                    await self.read()
            except TimeoutError:
                quiet += 1
        return sent

    async def answer(self, stream_id: int) -> Answer:
        """Read until the stream has ended one way or the other."""
        answer = self.answers[stream_id]
        while not answer.ended and answer.reset is None:
            assert not self.closed, "the connection ended before the answer"
            await self.read()
        return answer

    async def until_closed(self) -> None:
        while not self.closed:
            await self.read()

    async def read(self) -> None:
        """Take in what has arrived, at least one byte, or the end."""
        try:
            data = await self.wire.reader.read(65536)
        except ConnectionError:
            data = b""
        if not data:
            self.closed = True
            return
        for event in self.conn.receive_data(data):
            self._note(event)
        await self.flush()

    def _note(self, event: Event) -> None:
        if isinstance(event, ConnectionTerminated):
            self.goaway = event.error_code
            # The library would not hear what still comes on streams under way.
            self.conn.state_machine.state = ConnectionState.CLIENT_OPEN
            return
        answer = self.answers.get(getattr(event, "stream_id", None) or 0)
        if answer is None:
            return
        match event:
            case InformationalResponseReceived(headers=headers):
                answer.interim.append([(bytes(name), bytes(value)) for name, value in headers])
            case ResponseReceived(headers=headers):
                answer.fields = [(bytes(name), bytes(value)) for name, value in headers]
            case TrailersReceived(headers=headers):
                answer.trailers = [(bytes(name), bytes(value)) for name, value in headers]
            case DataReceived(data=data, flow_controlled_length=size, stream_id=stream_id):
                answer.body += data
                if self._generous and size:
                    self.conn.acknowledge_received_data(size, stream_id)
            case StreamEnded():
                answer.ended = True
            case StreamReset(error_code=code):
                answer.reset = code


async def run_curl(*args: str, stdin: bytes = b"") -> bytes:
    """What the system's curl prints."""
    argv = ["curl", "-sS", *args]
    return (await asyncio.to_thread(subprocess.run, argv, input=stdin, stdout=subprocess.PIPE, check=True)).stdout
