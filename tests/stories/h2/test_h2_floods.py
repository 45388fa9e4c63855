"""What a hostile HTTP/2 client may send before it is sent away, and that others are served meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from hatchvm.base.tasks import spawn
from hatchvm.testing.http.h2 import H2Client
from hatchvm.testing.stage import Stage, Wire

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
MANY = 50_000


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage.open() as stage:
        yield stage


async def silent(wire: Wire) -> None:
    await wire.rest()


async def last_words(client: H2Client) -> ErrorCodes | None:
    """Read to the end of the connection; the code of the GOAWAY in it. None: the end came before it could be read."""
    heard = bytearray()
    with contextlib.suppress(ConnectionError):
        while data := await client.wire.reader.read(65536):
            heard += data
    code = None
    while len(heard) >= 9:
        frame, length = Frame.parse_frame_header(memoryview(bytes(heard[:9])))
        if isinstance(frame, GoAwayFrame):
            code = ErrorCodes(int.from_bytes(heard[13:17]))
        del heard[: 9 + length]
    return code


async def flood(stage: Stage, client: H2Client, data: bytes) -> None:
    """Send without end until the proxy has had enough; it must say why."""

    async def send() -> None:
        with contextlib.suppress(ConnectionError):
            await client.wire.send(data)

    sending = spawn(send(), name="flood")
    assert await last_words(client) in (ErrorCodes.ENHANCE_YOUR_CALM, None)
    client.wire.reset()
    await sending
    await stage.gate.until_released("vm-app")


@pytest.mark.parametrize(
    "frame",
    [
        PingFrame(0, b"12345678"),
        SettingsFrame(0, {SettingCodes.INITIAL_WINDOW_SIZE: 70_000}),
        PriorityFrame(1, depends_on=0),
        WindowUpdateFrame(0, window_increment=1),
        WindowUpdateFrame(1, window_increment=1),
        DataFrame(1, b""),
        RstStreamFrame(1),
    ],
    ids=lambda frame: f"{type(frame).__name__}-{frame.stream_id}",
)
async def test_frames_that_bring_nothing(stage: Stage, frame: Frame) -> None:
    await stage.guest(silent)
    client = await H2Client.open(stage)
    await client.ask(method="POST", end=False)
    await flood(stage, client, frame.serialize() * MANY)


async def test_streams_that_are_opened_to_be_reset(stage: Stage) -> None:
    await stage.guest(silent)
    client = await H2Client.open(stage)
    block = client.conn.encoder.encode([(":method", "GET"), (":scheme", "http"), (":path", "/")])
    attack = bytearray()
    for number in range(1, 4001, 2):
        attack += HeadersFrame(number, block, flags=("END_HEADERS", "END_STREAM")).serialize()
        attack += RstStreamFrame(number, 8).serialize()
    await flood(stage, client, bytes(attack))
    assert stage.gate.dials < 300


async def test_streams_that_must_be_reset(stage: Stage) -> None:
    """MadeYouReset: the proxy resets, because of the client."""
    client = await H2Client.open(stage)
    block = client.conn.encoder.encode([(":method", "GET"), (":scheme", "http")])
    head = [
        HeadersFrame(number, block, flags=("END_HEADERS", "END_STREAM")).serialize() for number in range(1, 4001, 2)
    ]
    await flood(stage, client, b"".join(head))


async def test_a_head_without_end(stage: Stage) -> None:
    client = await H2Client.open(stage)
    more = ContinuationFrame(1, b"").serialize() * MANY
    await client.wire.send(HeadersFrame(1, b"").serialize() + more[: 9 * 100])
    await client.until_closed()


async def test_a_header_bomb(stage: Stage) -> None:
    """A few bytes that stand for megabytes: one large field, named from the table again and again."""
    client = await H2Client.open(stage)
    block = client.conn.encoder.encode([("x", "y" * 3900)]) + b"\xbe" * 100
    await client.wire.send(HeadersFrame(1, block, flags=("END_HEADERS", "END_STREAM")).serialize())
    await client.until_closed()
    assert client.goaway == ErrorCodes.ENHANCE_YOUR_CALM


async def test_large_heads_are_told_so(stage: Stage) -> None:
    await stage.guest(silent)
    client = await H2Client.open(stage)
    client.conn.remote_settings[SettingCodes.MAX_HEADER_LIST_SIZE] = 1 << 20
    stream = await client.ask(fields=[("x", "y" * 3900)] * 18)
    assert (await client.answer(stream)).status == 431


async def test_a_frame_longer_than_agreed_is_not_waited_for(stage: Stage) -> None:
    await stage.guest(silent)
    client = await H2Client.open(stage)
    stream = await client.ask(method="POST", end=False)
    await client.wire.send((1 << 24).to_bytes(4)[1:] + b"\0\0" + stream.to_bytes(4))
    await client.wire.send(b"\xff\xff\xff\0\0" + stream.to_bytes(4) + bytes(20_000))
    await client.until_closed()
    assert client.goaway == ErrorCodes.FRAME_SIZE_ERROR


async def test_more_streams_than_agreed(stage: Stage) -> None:
    await stage.guest(silent)
    client = await H2Client.open(stage)
    for _ in range(100):
        await client.ask()
    client.conn.remote_settings[SettingCodes.MAX_CONCURRENT_STREAMS] = 1000
    await client.ask()
    await client.until_closed()
    assert client.goaway is not None
    await stage.gate.until_released("vm-app")


async def test_ordinary_clients_stay_within_their_budgets(stage: Stage) -> None:
    """More requests, small frames and PINGs than a budget holds, without any time to recover."""

    async def echo(wire: Wire) -> None:
        while True:
            await wire.head()
            await wire.send(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 20 + b"0\r\n\r\n"
            )

    await stage.guest(echo)
    client = await H2Client.open(stage)
    for _ in range(10):
        streams = [await client.ask() for _ in range(10)]
        for stream in streams:
            assert (await client.answer(stream)).body == b"x" * 20
            for _ in range(15):
                client.conn.ping(b"12345678")
            await client.flush()
    upload = await client.ask(method="POST", end=False)
    client.wire.writer.write(DataFrame(upload, b"z").serialize() * 5000)
    client.wire.writer.write(DataFrame(upload, b"z", flags=("END_STREAM",)).serialize())
    assert (await client.answer(upload)).status == 200
