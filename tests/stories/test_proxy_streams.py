"""The proxy over real sockets: bodies, streams, upgrades, and slow ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from hatchvm.testing.stage import Stage, Wire

HOST = b"Host: app.hatch.local\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
UPGRADE = b"GET / HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: raw\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: raw\r\nConnection: Upgrade\r\n\r\n"
VM = "vm-app"
MIB = 1024 * 1024


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage.open() as stage:
        yield stage


async def test_a_body_reaches_the_guest_while_it_arrives(stage: Stage) -> None:
    half = asyncio.Event()

    async def guest(wire: Wire) -> None:
        await wire.head()
        assert await wire.exactly(3) == b"abc"
        half.set()
        assert await wire.exactly(3) == b"def"
        await wire.send(OK)

    await stage.guest(guest)
    client = await stage.client()
    await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 6\r\n\r\nabc")
    await half.wait()
    await client.send(b"def")
    assert (await client.answer())[1] == b"ok"


async def test_chunks_and_trailers_both_ways(stage: Stage) -> None:
    body = b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"

    async def guest(wire: Wire) -> None:
        await wire.head()
        assert await wire.exactly(len(body)) == body
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)

    await stage.guest(guest)
    client = await stage.client()
    await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + body)
    await client.head()
    assert await client.exactly(len(body)) == body


async def test_expect_continue_while_the_vm_sleeps(stage: Stage) -> None:
    async def guest(wire: Wire) -> None:
        assert b"\r\nExpect: 100-continue\r\n" in await wire.head()
        await wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await wire.exactly(3) == b"abc"
        await wire.send(OK)

    await stage.guest(guest)
    stage.gate.asleep.add(VM)
    client = await stage.client()
    await client.send(b"POST / HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    await stage.gate.until_needed(1)
    stage.gate.wake.set()
    assert await client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
    await client.send(b"abc")
    assert (await client.answer())[1] == b"ok"


@pytest.mark.parametrize("polite", [True, False])
async def test_an_early_answer_survives_the_request(stage: Stage, polite: bool) -> None:
    async def guest(wire: Wire) -> None:
        await wire.head()
        wire.writer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
        if polite:
            await wire.rest()

    await stage.guest(guest)
    client = await stage.client()
    client.writer.write(b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 9000000\r\n\r\n" + bytes(5_000_000))
    head, body = await client.answer()
    assert (head[:12], body) == (b"HTTP/1.1 413", b"no")
    assert await client.rest() == b""


async def test_a_refusal_survives_the_request(stage: Stage) -> None:
    client = await stage.client()
    await client.send(b"POST / HTTP/1.1\r\nHost: a.hatch.local\r\nContent-Length: 9000000\r\n\r\n")
    client.writer.write(bytes(5_000_000))
    head, _ = await client.answer()
    assert head.startswith(b"HTTP/1.1 502")
    assert await client.rest() == b""


async def test_an_answer_until_the_end(stage: Stage) -> None:
    async def guest(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.0 200 OK\r\n\r\nall of it")

    await stage.guest(guest)
    client = await stage.client()
    await client.send(GET)
    assert (await client.rest()).endswith(b"\r\n\r\nall of it")


@pytest.mark.parametrize("head", [b"Content-Length: 9", b"Transfer-Encoding: chunked", b"X-Until: end"])
async def test_a_cut_answer_is_noticed(stage: Stage, head: bytes) -> None:
    received = asyncio.Event()

    async def guest(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n2\r\nab\r\n")
        await received.wait()
        wire.reset()

    await stage.guest(guest)
    client = await stage.client()
    await client.send(GET)
    await client.head()
    await client.exactly(7)
    received.set()
    with pytest.raises(ConnectionResetError):
        await client.rest()


async def test_server_sent_events_hold_the_vm_while_they_flow(stage: Stage) -> None:
    say: asyncio.Queue[bytes] = asyncio.Queue()

    async def guest(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        while True:
            await wire.send(await say.get())

    await stage.guest(guest)
    client = await stage.client()
    await client.send(GET)
    await client.head()
    for _ in range(3):
        stage.pass_time(600)
        say.put_nowait(b"data: 1\n\n")
        await client.exactly(9)
        assert stage.gate.holds[VM] == 1
    stage.pass_time(899)
    assert stage.gate.holds[VM] == 1
    stage.pass_time(1)
    assert stage.gate.holds[VM] == 0
    say.put_nowait(b"data: 2\n\n")
    assert await client.exactly(9) == b"data: 2\n\n"
    assert stage.gate.holds[VM] == 1
    client.reset()
    await stage.gate.until_released(VM)


async def test_the_guest_learns_that_a_listener_left(stage: Stage) -> None:
    left = asyncio.Event()

    async def guest(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\n\r\n")
        await wire.rest()
        left.set()

    await stage.guest(guest)
    client = await stage.client()
    await client.send(GET)
    await client.head()
    client.close()
    await left.wait()
    await stage.gate.until_released(VM)


class TestUpgrade:
    async def test_websocket(self, stage: Stage) -> None:
        async def echo(socket: ServerConnection) -> None:
            async for message in socket:
                await socket.send(message)

        async with serve(echo, "127.0.0.1", 0) as server:
            stage.gate.add("app", next(iter(server.sockets)).getsockname()[1])
            url = f"ws://app.hatch.localhost:{stage.port}/chat"
            async with connect(url, host="127.0.0.1", proxy=None) as socket:
                for message in ("hello", b"\x00\xff", "x" * 300_000):
                    await socket.send(message)
                    assert await socket.recv() == message
                assert stage.gate.holds[VM] == 1
                stage.pass_time(900)
                assert stage.gate.holds[VM] == 0
                await socket.send("again")
                assert await socket.recv() == "again"
                assert stage.gate.holds[VM] == 1
            await stage.gate.until_released(VM)

    async def test_half_close_each_way(self, stage: Stage) -> None:
        async def guest(wire: Wire) -> None:
            await wire.head()
            await wire.send(SWITCHED)
            assert await wire.rest() == b"question"
            await wire.send(b"answer")

        await stage.guest(guest)
        client = await stage.client()
        await client.send(UPGRADE + b"quest")
        assert await client.head() == SWITCHED
        await client.send(b"ion")
        client.end()
        assert await client.rest() == b"answer"

    async def test_the_guest_ends_first(self, stage: Stage) -> None:
        heard: asyncio.Queue[bytes] = asyncio.Queue()

        async def guest(wire: Wire) -> None:
            await wire.head()
            await wire.send(SWITCHED + b"bye")
            wire.end()
            heard.put_nowait(await wire.rest())

        await stage.guest(guest)
        client = await stage.client()
        await client.send(UPGRADE)
        assert await client.rest() == SWITCHED + b"bye"
        await client.send(b"wait")
        client.end()
        assert await heard.get() == b"wait"


class TestLargeBodies:
    SIZE = 50 * MIB

    async def test_upload(self, stage: Stage) -> None:
        received = 0

        async def guest(wire: Wire) -> None:
            nonlocal received
            await wire.head()
            while received < self.SIZE:
                received += len(await wire.reader.read(MIB))
            await wire.send(OK)

        await stage.guest(guest)
        client = await stage.client()
        await client.send(b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % self.SIZE)
        for _ in range(50):
            await client.send(bytes(MIB))
        assert (await client.answer())[1] == b"ok"

    async def test_a_slow_guest_is_not_buffered_for(self, stage: Stage) -> None:
        go = asyncio.Event()

        async def guest(wire: Wire) -> None:
            await wire.head()
            await go.wait()
            await wire.exactly(self.SIZE)
            await wire.send(OK)

        await stage.guest(guest)
        client = await stage.client()
        await client.send(b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % self.SIZE)
        client.writer.write(bytes(self.SIZE))
        await client.settled()
        assert client.writer.transport.get_write_buffer_size() > 0
        assert stage.proxy.buffered_bytes < MIB
        go.set()
        assert (await client.answer())[1] == b"ok"

    async def test_a_slow_reader_is_not_buffered_for(self, stage: Stage) -> None:
        sending: asyncio.Future[Wire] = asyncio.get_running_loop().create_future()

        async def guest(wire: Wire) -> None:
            await wire.head()
            wire.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % self.SIZE + bytes(self.SIZE))
            sending.set_result(wire)
            await wire.rest()

        await stage.guest(guest)
        client = await stage.client()
        await client.send(GET)
        guest_wire = await sending
        await guest_wire.settled()
        assert guest_wire.writer.transport.get_write_buffer_size() > 0
        assert stage.proxy.buffered_bytes < MIB
        await client.head()
        assert len(await client.exactly(self.SIZE)) == self.SIZE
