"""A worker's gate alone: what it asks of the daemon and what it knows by itself."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from hatchvm.base import tasks
from hatchvm.base.errors import Unavailable, Upstream
from hatchvm.domain.lifecycle import State
from hatchvm.domain.route import Route
from hatchvm.edge.http.workers.gate import KEEP_S, RemoteGate
from hatchvm.edge.http.workers.wire import Cancel, Come, Dial, Done, Failed, Left, Need, Report, RouteRow, Used
from hatchvm.ports.feed import Sight
from hatchvm.testing.clock import SteeredClock

NOW = datetime(2026, 1, 1, tzinfo=UTC)
VM = "vm-1"
ROUTE = Route(id="rt-1", vm_id=VM, subdomain="app", target_port=80, auto_wake=False, created_at=NOW, updated_at=NOW)


class Told:
    """A gate that knows one running VM, and what it says to its daemon."""

    def __init__(self) -> None:
        self.said: list[Report] = []
        self.clock = SteeredClock()
        self.gate = RemoteGate(self.said.append, self.clock)
        self.see(State.RUNNING)
        self.gate.saw_routes([ROUTE])

    def see(self, state: State | None, *, addressed: bool = True) -> None:
        self.gate.saw_vms([Sight(VM, "web", state, addressed)])

    async def lease(self) -> None:
        """Do what a first request does."""
        needing = tasks.spawn(self.gate.need(VM, reason="http", timeout_s=30), name="need")
        question = await self.question(Need)
        self.gate.answered(Done(question.number), None)
        await needing

    async def question(self, kind: type[Need] | type[Dial]) -> Need | Dial:
        """The last one, once it was asked."""
        while not self.said or not isinstance(self.said[-1], kind):
            await asyncio.sleep(0)
        return self.said[-1]

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        for _ in range(3):
            await asyncio.sleep(0)


@pytest.fixture
async def told() -> Told:
    return Told()


async def test_a_vm_is_ready_when_it_runs_and_is_known_to_be_held(told: Told) -> None:
    hold = told.gate.hold(VM, "http", "192.0.2.1")
    assert told.said == [Come(VM, "192.0.2.1")]
    assert not told.gate.ready(ROUTE)
    await told.lease()
    assert told.gate.ready(ROUTE)
    told.see(State.SUSPENDING)
    assert not told.gate.ready(ROUTE)
    told.see(State.RUNNING)
    assert told.gate.ready(ROUTE)
    hold.release()


async def test_what_cannot_be_ready_is_told_as_the_house_does(told: Told) -> None:
    told.see(State.SNAPSHOTTED)
    with pytest.raises(Unavailable, match="auto-wake"):
        told.gate.ready(ROUTE)
    told.see(State.ERROR)
    with pytest.raises(Unavailable, match="state"):
        told.gate.ready(ROUTE)
    told.see(State.RUNNING, addressed=False)
    with pytest.raises(Upstream, match="guest IP"):
        told.gate.ready(ROUTE)
    told.see(None)
    with pytest.raises(Upstream, match="not found"):
        told.gate.ready(ROUTE)


async def test_a_lease_is_kept_for_a_moment_and_given_back_with_its_last_byte(told: Told) -> None:
    first = told.gate.hold(VM)
    first.release()
    await told.pass_time(KEEP_S * 0.9)
    second = told.gate.hold(VM)
    await told.pass_time(KEEP_S * 10)
    second.touch()
    second.release()
    second.release()
    second.touch()
    await told.pass_time(KEEP_S * 0.9)
    assert told.said == [Come(VM, "")]
    await told.pass_time(KEEP_S)
    assert told.said[1:] == [Left(VM, told.said[-1].at)]  # type: ignore[union-attr]
    assert told.said[-1].at < told.clock.now()  # type: ignore[union-attr]
    assert not told.gate.ready(ROUTE)
    told.gate.hold(VM).release()
    assert told.said[2:] == [Come(VM, "")]


async def test_whoever_just_came_objects_to_a_suspend(told: Told) -> None:
    hold = told.gate.hold(VM)
    told.see(State.SUSPENDING)
    assert told.said == [Come(VM, "")] * 2
    other = told.gate.hold(VM)
    assert told.said == [Come(VM, "")] * 3
    hold.release()
    other.release()


async def test_an_old_stream_does_not_object(told: Told) -> None:
    hold = told.gate.hold(VM)
    await told.pass_time(10)
    told.see(State.SUSPENDING)
    assert told.said == [Come(VM, "")]
    hold.release()


async def test_last_bytes_are_reported_if_there_were_any(told: Told) -> None:
    hold = told.gate.hold(VM)
    told.gate.report()
    assert told.said[1:] == [Used({})]
    hold.touch()
    told.gate.report()
    told.gate.report()
    assert [len(used.vms) for used in told.said[1:] if isinstance(used, Used)] == [0, 1, 0]
    hold.release()


async def test_connections_to_a_vm_that_ended_are_forgotten(told: Told) -> None:
    forgotten: list[str] = []
    told.gate.forget = forgotten.append
    for state in State:
        told.see(state)
    assert len(forgotten) == 4
    told.see(None)
    assert len(forgotten) == 5


async def test_a_daemon_that_is_gone_wakes_nothing(told: Told) -> None:
    needing = tasks.spawn(told.gate.need(VM, reason="http", timeout_s=30), name="need")
    await told.question(Need)
    told.gate.close()
    with pytest.raises(Unavailable, match="restarting"):
        await needing
    with pytest.raises(Unavailable, match="restarting"):
        await told.gate.dial(VM, 80, timeout_s=1)


async def test_a_socket_for_a_client_that_has_gone_is_closed(told: Told) -> None:
    near, far = socket.socketpair()
    dialling = tasks.spawn(told.gate.dial(VM, 80, timeout_s=1), name="dial")
    question = await told.question(Dial)
    await tasks.cancel_and_wait(dialling)
    assert told.said[-1] == Cancel(question.number)
    told.gate.answered(Done(question.number), near)
    with far:
        assert far.recv(1) == b""


async def test_a_socket_that_came_with_the_hang_up_is_closed(told: Told) -> None:
    near, far = socket.socketpair()
    dialling = tasks.spawn(told.gate.dial(VM, 80, timeout_s=1), name="dial")
    question = await told.question(Dial)
    told.gate.answered(Done(question.number), near)
    await tasks.cancel_and_wait(dialling)
    assert dialling.cancelled()
    with far:
        assert far.recv(1) == b""


async def test_a_question_may_fail(told: Told) -> None:
    needing = tasks.spawn(told.gate.need(VM, reason="http", timeout_s=30), name="need")
    question = await told.question(Need)
    told.gate.answered(Failed.of(question.number, Unavailable("failed to wake vm", retry_after_s=2)), None)
    with pytest.raises(Unavailable, match="failed to wake vm"):
        await needing


async def test_a_domain_leads_to_its_route_once_it_is_verified(told: Told) -> None:
    told.gate.saw_routes([RouteRow.of(replace(ROUTE, domain="app.example")).route()])
    assert told.gate.domain("app.example") is None
    told.gate.saw_routes([RouteRow.of(replace(ROUTE, domain="app.example", domain_verified_at=NOW)).route()])
    assert told.gate.domain("app.example") == replace(ROUTE, domain="app.example", domain_verified_at=NOW)
    told.gate.saw_routes([ROUTE])
    assert told.gate.domain("app.example") is None


async def test_vms_are_found_by_their_names(told: Told) -> None:
    assert [told.gate.find(name) for name in (VM, "web", "app", "other")] == [VM, VM, VM, None]
    told.gate.route_gone(ROUTE)
    assert told.gate.find("app") is None
    assert told.gate.route("app") is None
