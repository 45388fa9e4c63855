"""Why a VM is awake, why it woke, when it will sleep; and SSH sessions that bypass Hatch."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hatchvm.domain.activity import Holding, Tracked
from hatchvm.domain.lifecycle import State
from hatchvm.domain.vm import VM, NewVM
from hatchvm.ports.house import Use
from hatchvm.telemetry import logs
from hatchvm.testing.world import World

#: Of the world: see `testing.world.SETTINGS`.
TIMEOUT_S = 1800
CHECK_S = 300


def sleeps(use: Use) -> str | None:
    """Why it will not; None: it will."""
    assert (use.sleeps_at is None) == bool(use.awake_because)
    return use.awake_because or None


async def use_of(world: World, vm: VM) -> Use:
    return await world.house.holds.use(vm.id)


async def test_an_idle_vm_sleeps_at_the_check_after_its_timeout(world: World) -> None:
    vm = await world.vm()
    world.clock.advance(1000)
    use = await use_of(world, vm)
    assert (use.state, use.hold_count, list(use.holds), use.last_wake) == (State.RUNNING, 0, [], None)
    assert use.idle_s == pytest.approx(1000, abs=0.01)
    assert use.idle_timeout == "30m0s"
    # It has 800 s left. The monitor's next check is overdue here; three more of them are too early.
    assert use.sleeps_at is not None
    ahead = use.sleeps_at - world.idle.next_check_at()
    assert ahead.total_seconds() == pytest.approx(3 * CHECK_S, abs=0.01)


async def test_what_holds_it_and_what_it_was_woken_by(world: World) -> None:
    vm = await world.asleep()
    assert sleeps(await use_of(world, vm)) == "not running"
    await world.gate.need(vm.id, reason="ssh", timeout_s=30, by="10.0.0.5")
    web = world.gate.hold(vm.id, "http", "10.0.0.6")
    shell = world.gate.hold(vm.id, "ssh", "10.0.0.5")
    lease = await world.house.holds.create(vm.id, ttl_s=600, reason="backup")
    shell.touch()
    world.tracked = [Tracked(peer="10.0.0.7", silent_s=5), Tracked(peer="10.0.0.5", silent_s=0)]
    use = await use_of(world, vm)
    assert use.last_active_at is not None
    assert [hold.peer or hold.id for hold in use.holds] == ["10.0.0.7", "10.0.0.6", "10.0.0.5", lease.id]
    past, request, session, job = use.holds
    assert (past.kind, past.since, use.hold_count) == ("ssh", None, 4)
    assert past.last_byte_at is not None
    assert use.last_active_at - past.last_byte_at < timedelta(seconds=5)
    assert request == Holding(kind="http", since=web.since, peer="10.0.0.6", last_byte_at=web.since)
    assert (session.kind, session.since, session.last_byte_at) == ("ssh", shell.since, shell.last_byte_at)
    assert shell.last_byte_at > shell.since
    assert job == Holding(kind="lease", since=lease.created_at, reason="backup", ends_at=lease.expires_at, id=lease.id)
    assert sleeps(use) == "3 open connections"
    assert use.last_wake is not None
    assert (use.last_wake.reason, use.last_wake.by) == ("ssh", "10.0.0.5")
    assert "clock" in use.last_wake.put_right.done
    world.tracked = []
    web.release()
    shell.release()
    use = await use_of(world, vm)
    assert sleeps(use) is None
    assert use.sleeps_at is not None
    assert 0 <= (use.sleeps_at - lease.expires_at).total_seconds() - TIMEOUT_S <= CHECK_S


async def test_of_many_connections_the_oldest_are_listed(world: World) -> None:
    vm = await world.vm()
    holds = [world.gate.hold(vm.id, "http", str(n)) for n in range(250)]
    use = await use_of(world, vm)
    assert (use.hold_count, [hold.peer for hold in use.holds]) == (250, [str(n) for n in range(100)])
    assert sleeps(use) == "250 open connections"
    for hold in holds:
        hold.release()


async def test_why_it_never_sleeps(world: World) -> None:
    unrouted = await world.vms.create(NewVM())
    assert sleeps(await use_of(world, unrouted)) == "no routes"
    never = await world.vm(idle_timeout="never")
    use = await use_of(world, never)
    assert (sleeps(use), use.idle_timeout) == ("idle_timeout is never", "never")


async def test_without_a_store_nothing_sleeps(tmp_path: Path) -> None:
    async with World.running(tmp_path, snapshots_configured=False) as world:
        assert sleeps(await use_of(world, await world.vm())) == "snapshot storage not configured"


async def test_a_restore_that_was_asked_for_is_a_wake_too(world: World) -> None:
    vm = await world.asleep()
    (snapshot,) = await world.snapshots(vm)
    await world.vms.restore(vm.id, None)
    woken = (await use_of(world, vm)).last_wake
    assert woken is not None
    assert (woken.reason, woken.by) == ("api", "")
    await world.vms.stop(vm.id)
    await world.vms.restore(vm.id, snapshot.id)
    again = (await use_of(world, vm)).last_wake
    assert again is not None
    assert again.at > woken.at


@pytest.mark.parametrize("past", [False, True])
async def test_an_ssh_session_keeps_an_idle_vm_awake_through_hatch_or_past_it(world: World, *, past: bool) -> None:
    vm = await world.vm()
    hold = None
    if past:
        world.tracked = [Tracked(peer="10.0.0.5", silent_s=60)]
    else:
        hold = world.gate.hold(vm.id, "ssh", "10.0.0.5")
    world.clock.advance(TIMEOUT_S + 1)
    with capture_logs() as logged:
        await world.idle.check()
    told = [entry for entry in logged if entry["event"] == logs.IDLE_SSH]
    assert [(entry["vm"], entry["ssh_port"]) for entry in told] == [(vm.id, vm.ssh_port)]
    assert world.state(vm) is State.RUNNING
    world.tracked = []
    if hold:
        hold.release()
    world.clock.advance(TIMEOUT_S - 1)
    await world.idle.check()
    assert world.state(vm) is State.RUNNING, "idle time counts from its end"
    world.clock.advance(2)
    await world.idle.check()
    assert world.state(vm) is State.SNAPSHOTTED


async def test_a_session_that_does_not_matter_is_not_logged(world: World) -> None:
    fresh, never, asleep = await world.vm(), await world.vm(idle_timeout="never"), await world.asleep()
    world.tracked = [Tracked(peer="10.0.0.5", silent_s=60)]
    with capture_logs() as logged:
        await world.idle.check()
    assert logs.IDLE_SSH not in [entry["event"] for entry in logged]
    assert [world.state(vm) for vm in (fresh, never)] == [State.RUNNING, State.RUNNING]
    assert (await use_of(world, asleep)).hold_count == 0
