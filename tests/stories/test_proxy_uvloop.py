"""The same transports on uvloop: what differs between the loops is pausing, half-closing and writing to closed ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from hatchvm.testing.stage import Stage, Wire

HOST = b"Host: app.hatch.local\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: raw\r\nConnection: Upgrade\r\n\r\n"
SIZE = 20_000_000


async def keep_alive(stage: Stage) -> None:
    async def guest(wire: Wire) -> None:
        while True:
            await wire.head()
            await wire.send(OK)

    await stage.guest(guest)
    client = await stage.client()
    await client.send(GET * 20)
    for _ in range(20):
        assert (await client.answer())[1] == b"ok"
    assert stage.gate.dials == 1


async def half_close(stage: Stage) -> None:
    async def guest(wire: Wire) -> None:
        await wire.head()
        await wire.send(SWITCHED)
        assert await wire.rest() == b"question"
        await wire.send(b"answer")

    await stage.guest(guest)
    client = await stage.client()
    await client.send(GET[:-2] + b"Connection: Upgrade\r\nUpgrade: raw\r\n\r\nquestion")
    client.end()
    assert await client.rest() == SWITCHED + b"answer"


async def slow_guest(stage: Stage) -> None:
    go = asyncio.Event()

    async def guest(wire: Wire) -> None:
        await wire.head()
        await go.wait()
        await wire.exactly(SIZE)
        await wire.send(OK)

    await stage.guest(guest)
    client = await stage.client()
    client.writer.write(b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % SIZE + bytes(SIZE))
    await client.settled()
    assert stage.proxy.buffered_bytes < 1024 * 1024
    go.set()
    assert (await client.answer())[1] == b"ok"


async def cut_answer(stage: Stage) -> None:
    received = asyncio.Event()

    async def guest(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\n\r\nab")
        await received.wait()
        wire.reset()

    await stage.guest(guest)
    client = await stage.client()
    await client.send(GET)
    await client.head()
    await client.exactly(2)
    received.set()
    with pytest.raises(ConnectionResetError):
        await client.rest()


@pytest.mark.parametrize("story", [keep_alive, half_close, slow_guest, cut_answer])
def test_on_uvloop(story: Callable[[Stage], Awaitable[None]]) -> None:
    async def play() -> None:
        async with Stage.open() as stage:
            await story(stage)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(play())
