"""The proxy in processes of its own: what their clients see, and what the daemon sees of them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from hatchvm.base.clock import SystemClock
from hatchvm.base.errors import Unavailable, Upstream
from hatchvm.domain.lifecycle import State
from hatchvm.edge.http.tls.certificates import Pair
from hatchvm.server.workers import workers
from hatchvm.testing.edge.tls import make_pair
from hatchvm.testing.edge.workers import WorkerStage, workers_over
from hatchvm.testing.http.h2 import run_curl
from hatchvm.testing.stage import Wire

HOST = b"Host: app.hatch.local\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
VM = "vm-app"


async def serving(wire: Wire) -> None:
    """A guest that answers whatever it is asked."""
    while True:
        await wire.head()
        await wire.send(OK)


async def status(stage: WorkerStage, request: bytes = GET) -> int:
    head, _ = await stage.ask(request)
    return int(head.split()[1])


async def until(condition: Callable[[], bool]) -> None:
    """Look again and again; the test's own deadline ends it."""
    while not condition():
        await asyncio.sleep(0.01)


async def until_status(stage: WorkerStage, wanted: int) -> None:
    while await status(stage) != wanted:
        pass


async def test_a_request_is_served_and_its_lease_given_back() -> None:
    async with WorkerStage.on() as stage:
        await stage.guest(serving)
        await until_status(stage, 200)
        assert stage.gate.held_by == [("http", "127.0.0.1")]
        await stage.gate.until_released(VM)


async def test_requests_in_a_row_share_a_lease_and_a_connection() -> None:
    async with WorkerStage.on() as stage:
        await stage.guest(serving)
        await until_status(stage, 200)
        client = await stage.client()
        asked = len(stage.gate.held_by), stage.gate.needs
        await client.send(GET * 200)
        for _ in range(200):
            assert (await client.answer())[1] == b"ok"
        assert (len(stage.gate.held_by), stage.gate.needs) == asked
        assert stage.gate.dials == 1


async def test_the_daemon_learns_when_the_last_byte_moved() -> None:
    answer = asyncio.Event()

    async def guest(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await answer.wait()
            answer.clear()
            await wire.send(b"1\r\nx\r\n")

    async with WorkerStage.on() as stage:
        await stage.guest(guest)
        await until_status_line(stage, client := await stage.client())
        answer.set()
        await client.exactly(6)
        before = SystemClock().now()
        answer.set()
        await client.exactly(6)
        moments = stage.gate.moments[VM]
        await until(lambda: bool(moments) and moments[-1] > before)
        assert stage.gate.holds[VM] == 1


async def until_status_line(stage: WorkerStage, client: Wire) -> None:
    await client.send(GET)
    assert (await client.head()).startswith(b"HTTP/1.1 200")


async def test_a_thousand_requests_over_two_workers_wake_a_vm_once() -> None:
    async with WorkerStage.on(2) as stage:
        await stage.guest(serving)
        stage.gate.move(VM, State.SNAPSHOTTED)
        asking = [asyncio.create_task(stage.ask(GET)) for _ in range(1000)]  # noqa: TID251
        await stage.gate.until_needed(1000)
        assert stage.gate.holds[VM] == 2, "not every worker has a lease, or one has more than one"
        stage.gate.wake.set()
        for answer in asyncio.as_completed(asking):
            assert (await answer)[1] == b"ok"
        assert stage.gate.wakes[VM] == 1


async def test_a_wake_that_fails_is_told_as_it_is() -> None:
    async with WorkerStage.on() as stage:
        await stage.guest(serving)
        stage.gate.move(VM, State.SNAPSHOTTED)
        stage.gate.wake_error = Unavailable("failed to wake vm", retry_after_s=7)
        stage.gate.wake.set()
        head, body = await stage.ask(GET)
        assert head.startswith(b"HTTP/1.1 503")
        assert b"Retry-After: 7" in head
        assert b"failed to wake vm" in body


async def test_what_cannot_be_dialled_is_told_as_it_is() -> None:
    async with WorkerStage.on() as stage:
        await stage.guest(serving)
        stage.gate.dial_errors = [Upstream("upstream refused connection")]
        head, body = await stage.ask(GET)
        assert head.startswith(b"HTTP/1.1 502")
        assert b"upstream refused connection" in body


async def test_a_bug_in_the_daemon_is_an_internal_error(caplog: pytest.LogCaptureFixture) -> None:
    async with WorkerStage.on() as stage:
        await stage.guest(serving)
        stage.gate.ports.clear()
        assert await status(stage) == 500
        assert "answering a worker failed" in caplog.text


async def test_a_client_that_hangs_up_no_longer_waits_for_the_wake() -> None:
    async with WorkerStage.on() as stage:
        await stage.guest(serving)
        stage.gate.move(VM, State.SNAPSHOTTED)
        client = await stage.client()
        await client.send(GET)
        await stage.gate.until_needed(1)
        client.reset()
        await stage.gate.until_left(1)
        await stage.gate.until_released(VM)


async def test_routes_come_change_and_go_while_workers_run() -> None:
    async with WorkerStage.on(2) as stage:
        assert await status(stage) == 502
        await stage.guest(serving)
        await until_status(stage, 200)
        route = stage.gate.routes["app"]
        stage.gate.remove(route)
        await until_status(stage, 502)
        stage.gate.put(route)
        await until_status(stage, 200)
        stage.gate.move(VM, State.SNAPSHOTTED)
        stage.gate.put(replace(route, auto_wake=False))
        await until_status(stage, 503)


async def test_a_vm_that_stops_is_not_served_from_pooled_connections() -> None:
    hung_up = asyncio.Event()

    async def guest(wire: Wire) -> None:
        await wire.head()
        await wire.send(OK)
        await wire.rest()
        hung_up.set()

    async with WorkerStage.on() as stage:
        await stage.guest(guest)
        await until_status(stage, 200)
        stage.gate.move(VM, State.STOPPED)
        await hung_up.wait()
        assert await status(stage) == 503


async def test_whoever_comes_while_a_leased_vm_is_being_suspended_is_an_arrival() -> None:
    async with WorkerStage.on() as stage:
        await stage.guest(serving)
        await until_status(stage, 200)
        stream = await stage.client()
        await stream.send(GET[:-2] + b"Content-Length: 5\r\n\r\n")  # holds the VM
        await until(lambda: stage.gate.holds[VM] == 1)
        stage.gate.move(VM, State.SUSPENDING)
        came = len(stage.gate.held_by)
        client = await stage.client()
        await client.send(GET)
        await stage.gate.until_came(came + 1)
        stage.gate.move(VM, State.RUNNING)
        stage.gate.wake.set()
        assert (await client.answer())[1] == b"ok"


async def test_a_worker_that_dies_lets_go_and_is_replaced() -> None:
    async with WorkerStage.on() as stage:
        await stage.guest(serving)
        stage.gate.move(VM, State.SNAPSHOTTED)
        client = await stage.client()
        await client.send(GET)
        await stage.gate.until_needed(1)
        [old] = stage.workers.pids
        os.kill(old, signal.SIGKILL)
        await stage.gate.until_released(VM)
        await stage.gate.until_left(1)
        stage.gate.wake.set()
        while True:
            try:
                assert await status(stage) == 200
                break
            except OSError:
                continue  # nobody listens at the moment
            except asyncio.IncompleteReadError:
                continue
        assert stage.workers.pids != [old]


async def test_a_worker_that_does_not_read_is_replaced() -> None:
    async with WorkerStage.on(silence_s=1.2) as stage:
        await stage.guest(serving)
        [old] = stage.workers.pids
        os.kill(old, signal.SIGSTOP)
        await until(lambda: old not in stage.workers.pids)


async def test_exchanges_under_way_end_when_the_workers_are_told_to_go() -> None:
    go = asyncio.Event()

    async def guest(wire: Wire) -> None:
        await wire.head()
        await go.wait()
        await wire.send(OK)

    async with WorkerStage.on() as stage:
        await stage.guest(guest)
        await until(lambda: bool(stage.gate.routes))
        client = await stage.client()
        await client.send(GET)
        await until(lambda: stage.gate.dials == 1)
        closing = asyncio.create_task(stage.workers.close())  # noqa: TID251
        await until(lambda: refused(stage.port))
        go.set()
        assert (await client.answer())[1] == b"ok"
        await closing
        assert not stage.workers.pids


def refused(port: int) -> bool:
    """True: nobody listens there."""
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return not any(local.endswith(f":{port:04X}") and state == "0A" for _, local, _, state, *_ in sockets)


async def test_a_taken_port_is_an_error_of_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_TAKEN_S", 0.2)
    async with WorkerStage.on() as stage:
        others = workers_over(stage.gate, stage.gate, 1)
        with pytest.raises(OSError, match="in use"):
            await others.start("127.0.0.1", stage.port)
        await others.close()


async def plays(stage: WorkerStage) -> None:
    await stage.guest(serving)
    stage.gate.move(VM, State.SNAPSHOTTED)
    stage.gate.wake.set()
    await until_status(stage, 200)


@pytest.mark.parametrize("story", [plays])
def test_the_daemon_may_run_on_uvloop(story: Callable[[WorkerStage], Awaitable[None]]) -> None:
    async def play() -> None:
        async with WorkerStage.on(2) as stage:
            await story(stage)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(play())


async def test_every_worker_speaks_tls(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "app", ["app.hatch.local"])
    async with WorkerStage.on(2, pairs=[pair]) as stage:
        await stage.guest(serving)
        await until_status(stage, 200)
        own = "--cacert", str(pair.certificate), "-w", "%{http_version}"
        name = "--resolve", f"app.hatch.local:{stage.tls_port}:127.0.0.1", f"https://app.hatch.local:{stage.tls_port}/"
        assert await run_curl(*own, *name) == b"ok2"
        # One of them ends; whoever is left or comes in its place has the port and the certificate.
        os.kill(stage.workers.pids[0], signal.SIGKILL)
        assert await run_curl(*own, "--retry", "5", "--retry-all-errors", *name) == b"ok2"


async def test_a_worker_whose_certificate_is_gone_says_so(tmp_path: Path) -> None:
    pair = Pair(tmp_path / "app.pem", tmp_path / "app.key")
    with pytest.raises(OSError, match=r"app\.pem"):
        async with WorkerStage.on(pairs=[pair]):
            pass
