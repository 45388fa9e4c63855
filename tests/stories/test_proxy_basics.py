"""The proxy over real sockets: routing, wakes, refusals, holds, and how connections are kept and lost."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator

import pytest

from hatchvm.base.errors import HatchError, NotFound, Unavailable, Upstream, UpstreamTimeout
from hatchvm.base.tasks import spawn
from hatchvm.testing.stage import Stage, Wire

GET = b"GET /x HTTP/1.1\r\nHost: App.hatch.local:9090\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
VM = "vm-app"


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage.open() as stage:
        yield stage


async def answers(wire: Wire) -> None:
    """A guest that answers every request on one connection."""
    while True:
        await wire.head()
        await wire.send(OK)


def error_of(answer: tuple[bytes, bytes]) -> tuple[int, str]:
    head, body = answer
    assert b"\r\nContent-Type: application/json\r\n" in head
    return int(head.split()[1]), json.loads(body)["error"]


async def test_a_guest_hears_who_asks_and_what(stage: Stage) -> None:
    heard: list[bytes] = []

    async def guest(wire: Wire) -> None:
        heard.append(await wire.head())
        await wire.send(OK)

    await stage.guest(guest)
    assert await stage.ask(GET) == (OK[:-2], b"ok")
    told, _, named = heard[0].partition(b"X-Request-Id: ")
    assert told == b"GET /x HTTP/1.1\r\nHost: App.hatch.local:9090\r\nX-Forwarded-Host: App.hatch.local:9090\r\n"
    assert re.fullmatch(rb"[0-9a-f]{12}-1\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: http\r\n\r\n", named)


async def test_connections_are_kept_on_both_sides(stage: Stage) -> None:
    await stage.guest(answers)
    client = await stage.client()
    for _ in range(5):
        await client.send(GET)
        assert (await client.answer())[1] == b"ok"
    assert stage.gate.dials == 1


async def test_pipelined_requests(stage: Stage) -> None:
    async def guest(wire: Wire) -> None:
        for number in range(5):
            await wire.head()
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % number)

    await stage.guest(guest)
    client = await stage.client()
    await client.send(GET * 5)
    client.end()
    assert (await client.rest()).count(b"HTTP/1.1 200") == 5


async def test_thousands_of_pipelined_refusals_do_not_sink_the_proxy(stage: Stage) -> None:
    client = await stage.client()
    await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 3000 + b"GET / HTTP/1.0\r\n\r\n")
    assert (await client.rest()).count(b"HTTP/1.1 502") == 3001


@pytest.mark.parametrize(
    "host", [b"", b"Host:\r\n", b"Host: hatch.local\r\n", b"Host: a.b.hatch.local\r\n", b"Host: a.example\r\n"]
)
async def test_no_subdomain(stage: Stage, host: bytes) -> None:
    answer = await stage.ask(b"GET / HTTP/1.1\r\n" + host + b"\r\n")
    assert error_of(answer) == (502, "no subdomain in host header")


async def test_a_custom_domain(stage: Stage) -> None:
    await stage.guest(answers)
    at_domain = GET.replace(b"App.hatch.local", b"App.Example.com")
    assert error_of(await stage.ask(at_domain)) == (502, "no subdomain in host header")
    stage.gate.domains["app.example.com"] = stage.gate.routes["app"]
    for host in (b"App.Example.com:9090", b"app.example.com", b"app.example.com:"):
        assert (await stage.ask(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"))[1] == b"ok"
    for host in (b"app", b"example.com", b"x.app.example.com", b"app.example.com.", b"app.example.com.hatch.local"):
        assert error_of(await stage.ask(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"))[0] == 502
    assert (await stage.ask(GET))[1] == b"ok", "the subdomain serves as well"
    del stage.gate.domains["app.example.com"]
    assert error_of(await stage.ask(at_domain)) == (502, "no subdomain in host header")


async def test_no_route(stage: Stage) -> None:
    assert error_of(await stage.ask(GET)) == (502, 'no route for subdomain "app"')


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Upstream("vm not found"), 502),
        (NotFound("vm not found"), 502),
        (Upstream("vm has no guest IP"), 502),
        (Unavailable("vm is snapshotted and auto-wake is disabled"), 503),
        (Unavailable('vm is in state "error", not proxying'), 503),
    ],
)
async def test_the_gate_refuses(stage: Stage, error: HatchError, status: int) -> None:
    await stage.guest(answers)
    stage.gate.refusals[VM] = error
    assert error_of(await stage.ask(GET)) == (status, error.message)
    assert stage.gate.holds[VM] == 0


async def test_a_bad_request_never_reaches_the_gate(stage: Stage) -> None:
    client = await stage.client()
    await client.send(GET[:-2] + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert error_of(await client.answer())[0] == 400
    assert await client.rest() == b""


class TestWake:
    async def test_a_request_wakes_its_vm_and_holds_it(self, stage: Stage) -> None:
        await stage.guest(answers)
        stage.gate.asleep.add(VM)
        client = await stage.client()
        await client.send(GET)
        await stage.gate.until_needed(1)
        assert stage.gate.holds[VM] == 1
        assert stage.gate.held_by == stage.gate.needed_by == [("http", "127.0.0.1")]
        stage.gate.wake.set()
        assert (await client.answer())[1] == b"ok"
        await stage.gate.until_released(VM)

    async def test_a_failed_wake_says_when_to_come_back(self, stage: Stage) -> None:
        await stage.guest(answers)
        stage.gate.asleep.add(VM)
        stage.gate.wake_error = Unavailable("failed to wake vm", retry_after_s=2.1)
        stage.gate.wake.set()
        head, body = await stage.ask(GET)
        assert error_of((head, body)) == (503, "failed to wake vm")
        assert b"\r\nRetry-After: 3\r\n" in head

    @pytest.mark.parametrize("goodbye", [Wire.close, Wire.reset, Wire.end])
    async def test_a_client_that_hangs_up_ends_its_exchange(self, stage: Stage, goodbye: object) -> None:
        assert callable(goodbye)
        await stage.guest(answers)
        stage.gate.asleep.add(VM)
        client = await stage.client()
        await client.send(GET)
        await stage.gate.until_needed(1)
        goodbye(client)
        await stage.gate.until_released(VM)
        await stage.gate.until_left(1)
        assert stage.gate.dials == 0

    async def test_a_body_stays_unread_meanwhile(self, stage: Stage) -> None:
        async def guest(wire: Wire) -> None:
            await wire.head()
            assert len(await wire.exactly(50_000_000)) == 50_000_000
            await wire.send(OK)

        await stage.guest(guest)
        stage.gate.asleep.add(VM)
        client = await stage.client()
        client.writer.write(GET.replace(b"GET", b"PUT")[:-2] + b"Content-Length: 50000000\r\n\r\n" + bytes(50_000_000))
        await stage.gate.until_needed(1)
        stage.gate.wake.set()
        assert (await client.answer())[1] == b"ok"

    async def test_a_vm_that_falls_asleep_again_is_woken_again(self, stage: Stage) -> None:
        await stage.guest(answers)
        stage.gate.wake.set()
        stage.gate.dial_errors = [Unavailable("vm sleeps"), Unavailable("vm sleeps")]
        assert (await stage.ask(GET))[1] == b"ok"
        assert (stage.gate.needs, stage.gate.dials) == (2, 3)

    async def test_but_not_for_ever(self, stage: Stage) -> None:
        await stage.guest(answers)
        stage.gate.wake.set()
        stage.gate.dial_errors = [Unavailable("vm sleeps")] * 3
        assert error_of(await stage.ask(GET)) == (503, "vm sleeps")
        assert stage.gate.needs == 2

    async def test_a_thousand_requests_for_one_sleeping_vm(self, stage: Stage) -> None:
        await stage.guest(answers)
        stage.gate.asleep.add(VM)
        clients = [await stage.client() for _ in range(1000)]
        for client in clients:
            client.writer.write(GET)
        await stage.gate.until_needed(1000)
        assert stage.gate.holds[VM] == 1000
        stage.gate.wake.set()
        for client in clients:
            assert await client.answer() == (OK[:-2], b"ok")
        await stage.gate.until_released(VM)
        assert stage.gate.dials < 1000


class TestGuestPort:
    async def test_silent_connections_do_not_keep_others_waiting_for_ever(self, stage: Stage) -> None:
        arrived = asyncio.Barrier(stage.proxy.limits.fresh_slots + 1)

        async def guest(wire: Wire) -> None:
            await wire.head()
            await arrived.wait()  # nobody is answered before more have come than there are slots
            await wire.send(OK)

        await stage.guest(guest)
        clients = [await stage.client() for _ in range(arrived.parties)]
        for client in clients:
            await client.send(GET)
        for client in clients:
            assert (await client.answer())[1] == b"ok"

    async def test_refuses(self, stage: Stage) -> None:
        stage.gate.add("app", 1)
        assert error_of(await stage.ask(GET)) == (502, "upstream refused connection")

    async def test_accepts_and_ends_without_a_byte(self, stage: Stage) -> None:
        async def guest(wire: Wire) -> None:
            wire.close()

        await stage.guest(guest)
        assert error_of(await stage.ask(GET)) == (502, "upstream refused connection")

    async def test_is_not_reached_in_time(self, stage: Stage) -> None:
        await stage.guest(answers)
        stage.gate.dial_errors = [UpstreamTimeout("upstream timed out")]
        assert error_of(await stage.ask(GET)) == (504, "upstream timed out")

    async def test_is_silent(self, stage: Stage) -> None:
        asked = asyncio.Event()

        async def guest(wire: Wire) -> None:
            await wire.head()
            asked.set()
            await wire.rest()

        await stage.guest(guest)
        client = await stage.client()
        await client.send(GET)
        await asked.wait()
        stage.pass_time(299)
        assert stage.gate.holds[VM] == 1
        stage.pass_time(1)
        assert error_of(await client.answer()) == (504, "upstream timed out")
        assert stage.gate.holds[VM] == 0

    async def test_a_bug_of_ours_is_a_500(self, stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
        stage.gate.add("app", 1)
        stage.gate.ports.clear()
        assert error_of(await stage.ask(GET)) == (500, "internal error")
        assert "connecting to a guest failed" in caplog.text


class TestPool:
    async def _served(self, stage: Stage) -> Wire:
        client = await stage.client()
        await client.send(GET)
        await client.answer()
        return client

    async def test_a_dead_connection_is_noticed(self, stage: Stage) -> None:
        gone = asyncio.Event()

        async def guest(wire: Wire) -> None:
            await wire.head()
            await wire.send(OK)
            await gone.wait()

        await stage.guest(guest)
        client = await self._served(stage)
        gone.set()
        await client.send(GET)
        assert (await client.answer())[1] == b"ok"
        assert stage.gate.dials == 2

    async def test_a_connection_that_dies_under_a_request_is_replaced(self, stage: Stage) -> None:
        turns = iter(range(10))

        async def guest(wire: Wire) -> None:
            await wire.head()
            await wire.send(OK)
            if next(turns) == 0:
                await wire.head()  # and hang up instead of answering
            else:
                await answers(wire)

        await stage.guest(guest)
        client = await self._served(stage)
        await client.send(GET)
        assert (await client.answer())[1] == b"ok"
        assert stage.gate.dials == 2

    async def test_unused_connections_are_closed(self, stage: Stage) -> None:
        ended = asyncio.Event()

        async def guest(wire: Wire) -> None:
            try:
                await answers(wire)
            finally:
                ended.set()

        await stage.guest(guest)
        await self._served(stage)
        stage.pass_time(29)
        assert not ended.is_set()
        stage.pass_time(2)
        await ended.wait()

    async def test_a_vm_that_goes_to_sleep_is_forgotten(self, stage: Stage) -> None:
        await stage.guest(answers)
        client = await self._served(stage)
        stage.proxy.forget("vm-other")
        stage.proxy.forget(VM)
        await client.send(GET)
        await client.answer()
        assert stage.gate.dials == 2

    async def test_a_request_that_cannot_be_repeated_gets_no_doubtful_connection(self, stage: Stage) -> None:
        await stage.guest(answers)
        client = await self._served(stage)
        post = GET.replace(b"GET", b"POST")
        await client.send(post)
        await client.answer()
        assert stage.gate.dials == 1
        stage.pass_time(2)
        await client.send(post)
        await client.answer()
        assert stage.gate.dials == 2

    async def test_a_connection_that_speaks_unasked_is_dropped(self, stage: Stage) -> None:
        speak, closed = asyncio.Event(), asyncio.Event()

        async def guest(wire: Wire) -> None:
            await wire.head()
            await wire.send(OK)
            await speak.wait()
            await wire.send(OK)
            await wire.rest()
            closed.set()

        await stage.guest(guest)
        await self._served(stage)
        speak.set()
        await closed.wait()


class TestImpatience:
    async def test_with_a_slow_head(self, stage: Stage) -> None:
        await stage.guest(answers)
        client = await stage.client()
        await client.send(GET + GET[:9])
        await client.answer()  # so the beginning of the second head has arrived, too
        stage.pass_time(15)
        assert error_of(await client.answer())[0] == 408

    async def test_with_a_client_that_asks_nothing_more(self, stage: Stage) -> None:
        await stage.guest(answers)
        client = await stage.client()
        await client.send(GET)
        await client.answer()
        stage.pass_time(75)
        assert await client.rest() == b""


class TestClose:
    async def test_an_answer_under_way_is_finished(self, stage: Stage) -> None:
        asked, go = asyncio.Event(), asyncio.Event()

        async def guest(wire: Wire) -> None:
            await wire.head()
            asked.set()
            await go.wait()
            await wire.send(OK)

        await stage.guest(guest)
        client = await stage.client()
        idle = await stage.client()
        await client.send(GET)
        await asked.wait()
        closing = spawn(stage.proxy.close(), name="close")
        assert await idle.rest() == b""
        go.set()
        assert (await client.rest()).endswith(b"ok")
        await closing
        with pytest.raises(OSError):
            await stage.client()
