"""Leases keep a working VM awake, and everybody may ask why it is."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from hatchvm.base.errors import Conflict, NotFound, Unavailable
from hatchvm.control.idle import IdleMonitor
from hatchvm.domain.activity import Tracked
from hatchvm.domain.lease import MAX_LEASES
from hatchvm.domain.lifecycle import State
from hatchvm.domain.vm import VM
from hatchvm.testing.vmm import no_hook
from hatchvm.testing.world import World

#: Of the world: see `testing.world.SETTINGS`.
TIMEOUT_S = 1800


async def later(world: World, seconds: float) -> None:
    """So much later the monitor looks."""
    world.clock.advance(seconds)
    await world.idle.flush()
    await world.idle.check()


async def lease_rows(world: World) -> list[str]:
    async with world.ctx.store.begin() as tx:
        return [lease.id for lease in await tx.leases.list()]


async def test_a_lease_keeps_a_vm_awake_and_idle_time_counts_from_its_end(world: World) -> None:
    vm = await world.vm()
    lease = await world.house.holds.create(vm.id, ttl_s=5000, reason="training")
    assert (lease.vm_id, lease.reason) == (vm.id, "training")
    assert lease.expires_at - lease.created_at == timedelta(seconds=5000)
    await later(world, 4999)
    assert world.state(vm) is State.RUNNING
    await later(world, 1 + TIMEOUT_S - 10)
    assert world.state(vm) is State.RUNNING, "it has been idle since the end of the lease"
    assert await lease_rows(world) == [], "what has ended is cleared away"
    assert (await world.rows())[0].last_active_at == lease.expires_at
    await later(world, 11)
    assert world.state(vm) is State.SNAPSHOTTED


async def test_one_that_has_ended_is_gone_at_once(world: World) -> None:
    vm = await world.vm()
    lease = await world.house.holds.create(vm.id, ttl_s=5, reason="")
    world.clock.advance(5)
    assert await world.house.holds.list(vm.id) == []
    for attempt in (world.house.holds.renew(vm.id, lease.id, ttl_s=9), world.house.holds.release(vm.id, lease.id)):
        with pytest.raises(NotFound, match="hold not found"):
            await attempt


async def test_a_lease_is_renewed_from_now_and_released(world: World) -> None:
    vm, other = await world.vm(), await world.vm()
    holds = world.house.holds
    first = await holds.create(vm.id, ttl_s=100, reason="a")
    second = await holds.create(vm.id, ttl_s=3000, reason="b")
    world.clock.advance(90)
    renewed = await holds.renew(vm.id, first.id, ttl_s=5000)
    assert (renewed.id, renewed.reason, renewed.created_at) == (first.id, "a", first.created_at)
    assert timedelta(seconds=5090) <= renewed.expires_at - first.created_at < timedelta(seconds=5091)
    assert await holds.list(vm.id) == [second, renewed]
    with pytest.raises(NotFound, match="hold not found"):
        await holds.release(other.id, first.id)
    await holds.release(vm.id, second.id)
    await later(world, 4000)
    assert world.state(vm) is State.RUNNING
    await holds.release(vm.id, first.id)
    with pytest.raises(NotFound, match="hold not found"):
        await holds.release(vm.id, first.id)
    await later(world, TIMEOUT_S - 10)
    assert world.state(vm) is State.RUNNING, "its release was activity"
    await later(world, 11)
    assert world.state(vm) is State.SNAPSHOTTED


async def test_a_vm_has_a_hundred_at_most_and_ended_ones_do_not_count(world: World) -> None:
    vm = await world.vm()
    await world.house.holds.create(vm.id, ttl_s=1, reason="")
    world.clock.advance(2)
    for _ in range(MAX_LEASES):
        await world.house.holds.create(vm.id, ttl_s=100, reason="")
    with pytest.raises(Conflict, match="the vm has 100 holds already; renew one, or release some"):
        await world.house.holds.create(vm.id, ttl_s=100, reason="")
    use = await world.house.holds.use(vm.id)
    assert (use.hold_count, len(use.holds)) == (MAX_LEASES, MAX_LEASES)


async def test_a_snapshot_that_is_asked_for_is_made_and_a_sleeping_vm_is_not_woken(world: World) -> None:
    vm = await world.vm()
    lease = await world.house.holds.create(vm.id, ttl_s=100, reason="")
    await world.vms.snapshot(vm.id)
    assert world.state(vm) is State.SNAPSHOTTED
    later_one = await world.house.holds.create(vm.id, ttl_s=100, reason="")
    assert world.state(vm) is State.SNAPSHOTTED
    before = world.owner(vm).activity.last_active_at
    world.clock.advance(200)
    await world.idle.flush()
    assert world.owner(vm).activity.last_active_at == before, "nobody used it while it slept"
    assert {lease.id, later_one.id}.isdisjoint(await lease_rows(world))


async def test_a_lease_that_comes_while_an_idle_vm_is_suspended_takes_that_back(world: World) -> None:
    vm = await world.vm()

    async def lease(step: str) -> None:
        if step == "pause":
            await world.house.holds.create(vm.id, ttl_s=100, reason="")

    world.step.interfere = lease
    await later(world, TIMEOUT_S + 1)
    assert (world.state(vm), await world.snapshots(vm)) == (State.RUNNING, [])


async def test_somebody_who_came_and_went_since_the_check_keeps_it_awake(world: World) -> None:
    vm = await world.vm()

    def visit(_: VM) -> list[Tracked]:
        world.gate.hold(vm.id).release()
        return []

    world.clock.advance(TIMEOUT_S + 1)
    await IdleMonitor(world.ctx, visit).check()
    assert world.state(vm) is State.RUNNING


async def test_a_restarted_daemon_honours_leases(tmp_path: Path) -> None:
    first = await World(tmp_path).start()
    vm, done = await first.vm(), await first.vm()
    kept = await first.house.holds.create(vm.id, ttl_s=9000, reason="job")
    await first.house.holds.create(done.id, ttl_s=3000, reason="")
    await first.stop()
    first.clock.advance(4000)
    async with World.running(tmp_path, clock=first.clock) as second:
        assert await second.house.holds.list(vm.id) == [kept]
        await later(second, 0)
        assert (second.state(vm), second.state(done)) == (State.RUNNING, State.RUNNING)
        await later(second, TIMEOUT_S - 1000 + 1)
        assert (second.state(vm), second.state(done)) == (State.RUNNING, State.SNAPSHOTTED)
        assert await lease_rows(second) == [kept.id]


async def test_leases_that_cannot_be_cleared_away_are_later(world: World) -> None:
    vm = await world.vm()
    lease = await world.house.holds.create(vm.id, ttl_s=5, reason="")

    world.clock.advance(10)
    world.step.fail_at("commit", Unavailable("the database is busy"))
    await world.idle.flush()
    world.step.interfere = no_hook
    assert list(world.owner(vm).activity.leases) == await lease_rows(world) == [lease.id]
    assert await world.house.holds.list(vm.id) == []
    await world.idle.flush()
    assert await lease_rows(world) == []
    assert world.owner(vm).activity.leases == {}


async def test_a_lease_of_a_vm_that_is_deleted_goes_with_it(world: World) -> None:
    vm = await world.vm()
    lease = await world.house.holds.create(vm.id, ttl_s=5000, reason="")
    await world.vms.delete(vm.id)
    assert await lease_rows(world) == []
    for attempt in (
        world.house.holds.list(vm.id),
        world.house.holds.create(vm.id, ttl_s=1, reason=""),
        world.house.holds.renew(vm.id, lease.id, ttl_s=1),
        world.house.holds.use(vm.id),
    ):
        with pytest.raises(NotFound, match="vm not found"):
            await attempt
