"""An HTTP proxy before an S3 server that fails on purpose, by dice that a seed decides.

Requests are passed on byte for byte (signatures cover the Host header, which names the front), one connection to the
server for each of the client's. What was injected is counted, so that a test can tell that it saw what it is about.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from hatchvm.base import tasks
from hatchvm.base.units import MIB
from hatchvm.testing.s3.server import S3Server

DELAY: Final = "delay"
REFUSE: Final = "refuse"
RESET: Final = "reset"
TRUNCATE: Final = "truncate"
FLIP: Final = "flip"
DROP: Final = "drop"

_HEAD_LIMIT: Final = MIB
_REFUSALS: Final = {500: b"InternalError", 503: b"SlowDown"}
_REFUSED: Final = b"HTTP/1.1 %d Refused\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%s"
_REFUSAL: Final = b"<Error><Code>%s</Code><Message>injected</Message></Error>"


@dataclass(frozen=True, slots=True)
class Faults:
    """How likely each is, from 0 to 1, for every request.

    `delay`: answered up to `longest_delay_s` later. `refuse`: answered with status 500 or 503, the server not asked.
    `reset`: the connection is reset, the server not asked. `truncate`: the body of an answer ends early, after a
    Content-Length that promised more. `flip`: one bit of an answer's body is another. `drop`: the server has done what
    a PUT, POST or DELETE asked, and the connection is reset in place of its answer.
    """

    delay: float = 0.0
    refuse: float = 0.0
    reset: float = 0.0
    truncate: float = 0.0
    flip: float = 0.0
    drop: float = 0.0
    longest_delay_s: float = 0.02


class Message(NamedTuple):
    """A request or an answer. `start`: its first line in words."""

    start: list[bytes]
    head: bytes
    body: bytes


class Front:
    """`server`: where clients are to go. `faults` may be replaced at any time. `injected`: name of a fault -> times.

    `on_request` is called with the first line of every request.
    """

    def __init__(self, server: S3Server, behind: S3Server, faults: Faults, seed: int) -> None:
        self.server = server
        self.faults = faults
        self.injected: Counter[str] = Counter()
        self.on_request: Callable[[bytes], object] = bool
        self._behind = urlsplit(behind.endpoint)
        self._random = random.Random(seed)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection."""
        up_reader, up_writer = await asyncio.open_connection(
            self._behind.hostname, self._behind.port, limit=_HEAD_LIMIT
        )
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while await self._exchange(reader, writer, up_reader, up_writer):
                    pass
        finally:
            for end in (up_writer, writer):
                end.close()

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> bool:
        """One request and its answer; whether another may follow."""
        request = await _request(reader, writer)
        self.on_request(b" ".join(request.start))
        if self._hit(RESET, self.faults.reset):
            return _reset(writer)
        if self._hit(REFUSE, self.faults.refuse):
            status = self._random.choice(list(_REFUSALS))
            body = b"" if request.start[0] == b"HEAD" else _REFUSAL % _REFUSALS[status]
            writer.write(_REFUSED % (status, len(body), body))
            await writer.drain()
            return True
        up_writer.write(request.head + request.body)
        await up_writer.drain()
        answer = await _answer(up_reader, request.start[0])
        if request.start[0] in (b"PUT", b"POST", b"DELETE") and self._hit(DROP, self.faults.drop):
            return _reset(writer)
        if self._hit(DELAY, self.faults.delay):
            await asyncio.sleep(self._random.uniform(0, self.faults.longest_delay_s))
        body = answer.body
        if body and self._hit(FLIP, self.faults.flip):
            at, bit = self._random.randrange(len(body)), 1 << self._random.randrange(8)
            body = body[:at] + bytes([body[at] ^ bit]) + body[at + 1 :]
        if body and self._hit(TRUNCATE, self.faults.truncate):
            writer.write(answer.head + body[: self._random.randrange(len(body))])
            await writer.drain()
            return False
        writer.write(answer.head + body)
        await writer.drain()
        return b"connection: close" not in answer.head.lower()

    def _hit(self, name: str, likelihood: float) -> bool:
        hit = self._random.random() < likelihood
        self.injected[name] += hit
        return hit


@asynccontextmanager
async def before(server: S3Server, faults: Faults, *, seed: int) -> AsyncIterator[Front]:
    """A front on a port of loopback, served by this event loop: clients must not block it."""
    connections: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = tasks.supervise(front.serve(reader, writer), name="front")
        connections.add(task)
        task.add_done_callback(connections.discard)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, limit=_HEAD_LIMIT)
    port = listener.sockets[0].getsockname()[1]
    front = Front(replace(server, endpoint=f"http://127.0.0.1:{port}"), server, faults, seed)
    try:
        yield front
    finally:
        listener.close()
        for task in list(connections):
            await tasks.cancel_and_wait(task)


def _reset(writer: asyncio.StreamWriter) -> bool:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


async def _request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Message:
    head = await reader.readuntil(b"\r\n\r\n")
    fields = _fields(head)
    if fields.pop(b"expect", b"") == b"100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        head = b"".join(line for line in head.splitlines(keepends=True) if not line.lower().startswith(b"expect:"))
    return Message(head.split(b"\r\n", 1)[0].split(), head, await _body(reader, fields))


async def _answer(reader: asyncio.StreamReader, method: bytes) -> Message:
    """A chunked body is passed on with a length: only then can it be cut short."""
    head = await reader.readuntil(b"\r\n\r\n")
    start, fields = head.split(b"\r\n", 1)[0].split(), _fields(head)
    if method == b"HEAD" or start[1] in (b"204", b"304"):
        return Message(start, head, b"")
    body = await _body(reader, fields)
    if b"transfer-encoding" in fields:
        lines = [line for line in head.splitlines(keepends=True) if not line.lower().startswith(b"transfer-encoding:")]
        head = b"".join([*lines[:-1], b"Content-Length: %d\r\n" % len(body), lines[-1]])
    return Message(start, head, body)


def _fields(head: bytes) -> dict[bytes, bytes]:
    pairs = (line.split(b":", 1) for line in head.split(b"\r\n")[1:] if line)
    return {name.strip().lower(): value.strip().lower() for name, value in pairs}


async def _body(reader: asyncio.StreamReader, fields: dict[bytes, bytes]) -> bytes:
    if fields.get(b"transfer-encoding") != b"chunked":
        return await reader.readexactly(int(fields.get(b"content-length", b"0")))
    chunks = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        chunks.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return b"".join(chunks)
