"""gRPC through the proxy: its own client and server, unmodified."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest

from hatchvm.testing.http.h2 import H2Client
from hatchvm.testing.stage import Stage, Wire

VM = "vm-app"
ECHO = "/test.Service/echo"
SIZE = 5 * 1024 * 1024
OPTIONS = [
    ("grpc.default_authority", "app.hatch.local"),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]
Context = Any


@dataclass
class Service:
    """A server and what happened to it. Messages are bytes as they are."""

    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0

    async def echo(self, request: bytes, context: Context) -> bytes:
        await context.send_initial_metadata([("early", "yes")])
        metadata = dict(context.invocation_metadata())
        context.set_trailing_metadata([("late", metadata.get("question", "")), ("tag-bin", b"\0\xff")])
        if request == b"refuse":
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now: \u00e4")
        return request

    async def count(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number

    async def blocks(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        for _ in range(200):
            yield bytes(100_000)

    async def talk(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request.upper()

    async def gather(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        return b"%d" % sum([len(request) async for request in requests])

    async def sleep(self, request: bytes, context: Context) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
        return b""

    def handlers(self) -> dict[str, Any]:
        return {
            "echo": grpc.unary_unary_rpc_method_handler(self.echo),
            "count": grpc.unary_stream_rpc_method_handler(self.count),
            "blocks": grpc.unary_stream_rpc_method_handler(self.blocks),
            "talk": grpc.stream_stream_rpc_method_handler(self.talk),
            "gather": grpc.stream_unary_rpc_method_handler(self.gather),
            "sleep": grpc.unary_unary_rpc_method_handler(self.sleep),
        }


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage.open() as stage:
        yield stage


@pytest.fixture
async def service(stage: Stage) -> AsyncIterator[Service]:
    service = Service()
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", service.handlers())])
    service.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stage.gate.add("app", service.port)
    yield service
    await server.stop(None)


@pytest.fixture
async def channel(stage: Stage, service: Service) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{stage.port}", options=OPTIONS) as channel:
        yield channel


async def test_unary_calls(stage: Stage, channel: grpc.aio.Channel) -> None:
    echo = channel.unary_unary(ECHO)
    call = echo(b"hello", metadata=[("question", "why")])
    assert await call == b"hello"
    assert ("early", "yes") in list(await call.initial_metadata())
    assert list(await call.trailing_metadata()) == [("late", "why"), ("tag-bin", b"\0\xff")]
    for number in range(50):
        assert await echo(b"%d" % number) == b"%d" % number
    assert stage.gate.dials == 1
    await stage.gate.until_released(VM)


async def test_calls_at_the_same_time(stage: Stage, channel: grpc.aio.Channel) -> None:
    echo = channel.unary_unary(ECHO)
    calls = [echo(b"%d" % number) for number in range(200)]
    assert [await call for call in calls] == [b"%d" % number for number in range(200)]


async def test_large_messages(channel: grpc.aio.Channel) -> None:
    assert await channel.unary_unary(ECHO)(bytes(SIZE)) == bytes(SIZE)


async def test_streams_from_the_guest(channel: grpc.aio.Channel) -> None:
    call = channel.unary_stream("/test.Service/count")(b"2000")
    assert [message async for message in call] == [b"%d" % number for number in range(2000)]


async def test_streams_to_the_guest(channel: grpc.aio.Channel) -> None:
    call = channel.stream_unary("/test.Service/gather")()
    for _ in range(100):
        await call.write(bytes(10_000))
    await call.done_writing()
    assert await call == b"1000000"


async def test_conversations(stage: Stage, channel: grpc.aio.Channel) -> None:
    call = channel.stream_stream("/test.Service/talk")()
    for number in range(30):
        await call.write(b"say %d" % number)
        assert await call.read() == b"SAY %d" % number
    assert stage.gate.holds[VM] == 1
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() == grpc.StatusCode.OK


async def failure_of(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str | None]:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return failed.value.code(), failed.value.details()


async def test_errors_keep_their_status(channel: grpc.aio.Channel) -> None:
    echo, none = channel.unary_unary(ECHO), channel.unary_unary("/test.Service/none")
    assert await failure_of(echo(b"refuse")) == (grpc.StatusCode.FAILED_PRECONDITION, "not now: \u00e4")
    assert (await failure_of(none(b"")))[0] == grpc.StatusCode.UNIMPLEMENTED
    assert await echo(b"still here") == b"still here"


async def test_a_deadline_ends_the_guests_call(stage: Stage, service: Service, channel: grpc.aio.Channel) -> None:
    sleep = channel.unary_unary("/test.Service/sleep")
    assert (await failure_of(sleep(b"", timeout=0.5)))[0] == grpc.StatusCode.DEADLINE_EXCEEDED
    await service.cancelled.wait()
    await stage.gate.until_released(VM)


async def test_a_cancelled_call_ends_the_guests(stage: Stage, service: Service, channel: grpc.aio.Channel) -> None:
    call = channel.unary_unary("/test.Service/sleep")(b"")
    while not stage.gate.dials:
        await asyncio.sleep(0)
    call.cancel()
    await stage.gate.until_released(VM)


async def test_a_call_wakes_its_vm(stage: Stage, channel: grpc.aio.Channel) -> None:
    stage.gate.asleep.add(VM)
    call = channel.unary_unary(ECHO)(b"wake up")
    await stage.gate.until_needed(1)
    stage.gate.wake.set()
    assert await call == b"wake up"


async def test_refusals_are_unavailable(stage: Stage, channel: grpc.aio.Channel) -> None:
    stage.gate.routes.clear()
    assert (await failure_of(channel.unary_unary(ECHO)(b"")))[0] == grpc.StatusCode.UNAVAILABLE


async def test_a_restarted_server_is_found_again(stage: Stage, channel: grpc.aio.Channel) -> None:
    """Pooled connections end with the server that said GOAWAY."""
    servers: list[grpc.aio.Server] = []
    echo = channel.unary_unary(ECHO)
    for _ in range(2):
        server = grpc.aio.server()
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Service", Service().handlers())])
        stage.gate.ports[VM, 80] = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        assert await echo(b"a") == b"a"
        await server.stop(5)
        while stage.gate.holds[VM]:
            await asyncio.sleep(0)
    assert stage.gate.dials == 2


GRPC = [("content-type", "application/grpc+proto"), ("te", "trailers")]


@pytest.mark.parametrize("says", [b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", b"HTTP/1.1 505 \r\n\r\n"])
async def test_a_guest_without_http2(stage: Stage, says: bytes) -> None:
    async def guest(wire: Wire) -> None:
        await wire.exactly(24)
        await wire.send(says)

    await stage.guest(guest)
    client = await H2Client.open(stage)
    answer = await client.answer(await client.ask(fields=GRPC, method="POST", path=ECHO))
    assert answer.status == 502
    assert b"does not speak HTTP/2" in answer.body


@pytest.mark.parametrize("kind", ["application/grpc-web", "application/grpc-web+proto", "application/json"])
async def test_grpc_web_and_others_stay_http1(stage: Stage, kind: str) -> None:
    async def guest(wire: Wire) -> None:
        assert (await wire.head()).startswith(b"POST /test.Service/echo HTTP/1.1\r\n")
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    await stage.guest(guest)
    client = await H2Client.open(stage)
    assert (
        await client.answer(await client.ask(fields=[("content-type", kind)], method="POST", path=ECHO))
    ).status == 200


async def test_a_guest_that_hangs_up(stage: Stage) -> None:
    async def guest(wire: Wire) -> None:
        await wire.exactly(24)

    await stage.guest(guest)
    client = await H2Client.open(stage)
    answer = await client.answer(await client.ask(fields=GRPC, method="POST", path=ECHO))
    assert (answer.status, b"upstream refused connection" in answer.body) == (502, True)


async def test_a_guest_that_does_not_read(stage: Stage) -> None:
    """A window of 64 KiB that is never given back: the rest of the message stays at the client."""
    greeting = b"\0\0\0\x04\0\0\0\0\0"  # SETTINGS

    async def guest(wire: Wire) -> None:
        await wire.send(greeting)
        await wire.rest()

    await stage.guest(guest)
    client = await H2Client.open(stage)
    stream = await client.ask(end=False, fields=GRPC, method="POST", path=ECHO)
    assert 64 * 1024 < await client.upload(stream, 5_000_000) < 1024 * 1024
    client.conn.reset_stream(stream)
    await client.flush()
    await stage.gate.until_released(VM)


async def test_a_client_that_does_not_read_holds_the_guest_back(stage: Stage, service: Service) -> None:
    """The guest has 20 MB to say; the client gives no window back until the end."""
    client = await H2Client.open(stage, generous=False)
    client.conn.increment_flow_control_window(1 << 25)
    stream = await client.ask(end=False, fields=GRPC, method="POST", path="/test.Service/blocks")
    await client.say(stream, b"\0\0\0\0\0", end=True)
    while len(client.answers[stream].body) < 65_535:
        await client.read()
    for _ in range(3000):
        await asyncio.sleep(0)  # time to say more than it should
    assert 64 * 1024 < stage.proxy.buffered_bytes < 1024 * 1024
    client.conn.increment_flow_control_window(1 << 25, stream)
    await client.flush()
    answer = await client.answer(stream)
    assert (len(answer.body), dict(answer.trailers)[b"grpc-status"]) == (200 * 100_005, b"0")
