"""A request that comes while its VM is being put to sleep, at any moment: it is served, and nothing is lost."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest

from hatchvm.base import tasks
from hatchvm.base.errors import Conflict
from hatchvm.domain.lifecycle import State
from hatchvm.domain.snapshot import SnapshotStatus
from hatchvm.domain.vm import VM
from hatchvm.testing.vmm import no_hook
from hatchvm.testing.world import World

#: The steps of `POST snapshot`, from the first one on; its last is the row that says `committed`.
LAST: Final = 28


class Visitor:
    """Comes for the VM at the n-th step, and waits for his answer while the suspend goes on."""

    def __init__(self, world: World, vm: VM, n: int) -> None:
        self.answer: asyncio.Task[int] | None = None
        self.at = ""
        self._world = world
        self._vm = vm
        self._left = n
        world.step.interfere = self

    async def __call__(self, step: str) -> None:
        self._left -= 1
        if not self._left:
            self.at = step
            self.answer = tasks.spawn(self._world.request(self._vm), name="visitor")
            for _ in range(5):
                await asyncio.sleep(0)


async def settled(world: World, vm: VM) -> None:
    """Nothing is under way any more but what waits for nothing."""
    owner = world.owner(vm)
    while owner.busy or (owner.upload is not None and not owner.upload.done()):
        await owner.idle(10)
        if owner.upload is not None:
            await asyncio.wait([owner.upload])


@pytest.mark.parametrize("n", range(1, LAST + 1))
async def test_a_request_at_any_step_of_a_suspend_is_served(world: World, n: int) -> None:
    vm = await world.vm()
    assert await world.request(vm) == 1
    before = world.memory(vm)
    visitor = Visitor(world, vm, n)
    try:
        taken = await world.vms.snapshot(vm.id)
    except Conflict as conflict:
        assert "request" in str(conflict)
        committed = False
    else:
        committed = taken.status is SnapshotStatus.COMMITTED
    world.step.interfere = no_hook
    if visitor.answer is None:
        assert committed, "nobody disturbed it"
        assert await world.request(vm) == 2
    else:
        assert await visitor.answer == 2, f"came at {visitor.at}"
    await settled(world, vm)
    after = world.memory(vm)
    assert (world.state(vm), world.now(vm).state_reason) == (State.RUNNING, "")
    assert (after["life"], after["requests"]) == (before["life"], 2)
    rows = await world.snapshots(vm)
    assert [row.status for row in rows] == [SnapshotStatus.COMMITTED] * committed
    assert [row.state for row in await world.rows()] == [State.RUNNING]
    assert len(world.machines.live()) == 1
    assert not world.paths.vm(vm.id).saved.exists()
    assert not world.paths.vm(vm.id).waking.exists()


async def test_the_steps_above_are_all_of_them(world: World) -> None:
    vm = await world.vm()
    taken = len(world.step.taken)
    await world.vms.snapshot(vm.id)
    await settled(world, vm)
    assert 20 < len(world.step.taken) - taken <= LAST


@pytest.mark.parametrize("step", ["pause", "capture", "capture done"])
async def test_a_suspend_that_was_taken_back_never_ended_the_process(world: World, step: str) -> None:
    vm = await world.vm()
    process = [*world.machines.live()]

    async def visit(at: str) -> None:
        if at == step:
            world.gate.hold(vm.id).release()

    world.step.interfere = visit
    with pytest.raises(Conflict, match="a request came while the vm was being snapshotted; it runs on"):
        await world.vms.snapshot(vm.id)
    assert [*world.machines.live()] == process
    assert (world.state(vm), await world.snapshots(vm)) == (State.RUNNING, [])


async def test_an_open_request_gets_a_moment_to_end(world: World) -> None:
    vm = await world.vm()
    hold = world.gate.hold(vm.id)
    suspend = tasks.spawn(world.vms.snapshot(vm.id), name="suspend")
    await asyncio.sleep(0)
    assert world.state(vm) is State.RUNNING
    hold.release()
    assert (await suspend).status is SnapshotStatus.COMMITTED


async def test_the_moment_ends(world: World) -> None:
    vm = await world.vm()
    hold = world.gate.hold(vm.id)
    suspend = tasks.spawn(world.vms.snapshot(vm.id), name="suspend")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    world.clock.advance(world.ctx.settings.drain_s)
    assert (await suspend).status is SnapshotStatus.COMMITTED
    hold.release()


async def test_the_idle_monitor_leaves_a_held_vm_alone(world: World) -> None:
    vm = await world.vm()
    hold = world.gate.hold(vm.id)
    world.clock.advance(10_000)
    await world.idle.check()
    assert world.state(vm) is State.RUNNING
    hold.release()
    await world.idle.check()
    assert world.state(vm) is State.RUNNING, "it was active just now"
    world.clock.advance(1801)
    await world.idle.check()
    assert world.state(vm) is State.SNAPSHOTTED
