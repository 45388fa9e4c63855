"""Whatever fails, wherever: no VM is stranded. Once the fault is gone it can be woken, started or deleted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import pytest

from hatchvm.base.errors import HatchError, Internal, Unavailable
from hatchvm.domain.lifecycle import TARGET, State
from hatchvm.domain.snapshot import SnapshotStatus
from hatchvm.domain.vm import VM, NewVM
from hatchvm.testing.vmm import no_hook
from hatchvm.testing.world import World

#: More than any verb takes.
MOST: Final = 60

Verb = Callable[[World, VM], Awaitable[None]]


class Fault:
    """Fails the n-th step; or, `lasting`, that one and every later one like it."""

    def __init__(self, world: World, n: int, *, lasting: bool) -> None:
        self.at = ""
        self._left = n
        self._lasting = lasting
        world.step.interfere = self

    async def __call__(self, step: str) -> None:
        self._left -= 1
        if step == "commit done":
            return  # the database does not report a failure after it has committed
        if self._left <= 0 and (not self.at or (self._lasting and step == self.at)):
            self.at = step
            raise Unavailable("out of order") if self._lasting else Internal("out of order")


async def settled(world: World, vm: VM) -> None:
    owner = world.ctx.owners.find(vm.id)
    while owner is not None and owner.busy:
        await owner.idle(10)


async def heal_and_check(world: World, vm: VM, where: str) -> None:
    """The VM is in a stable, true state, and of use again; then it can be deleted without a trace."""
    world.step.interfere = no_hook
    await settled(world, vm)
    now = world.now(vm)
    assert now.state not in TARGET, where
    live = len(world.machines.live())
    assert live == (now.state is State.RUNNING), f"{where}: {now.state} with {live} processes"
    if now.state in (State.STOPPED, State.ERROR):
        await world.vms.start(vm.id)
    if now.state is not State.DELETING:
        world.clock.advance(100)
        assert await world.request(vm) >= 1, where
        assert (await world.vms.snapshot(vm.id)).status is SnapshotStatus.COMMITTED
        pending = [row for row in await world.snapshots(vm) if row.status is SnapshotStatus.PENDING]
        assert not pending, f"{where}: nobody stores {pending}"
    await world.vms.delete(vm.id)
    await nothing_left(world, where)


async def nothing_left(world: World, where: str) -> None:
    assert not world.machines.live(), where
    assert not world.machines.violations, where
    assert not await world.rows(), where
    assert not [*world.ctx.owners], where
    assert not [*world.paths.vms.glob("*")], where
    assert not [path for path in world.paths.objects.glob("snapshots/**/*") if path.is_file()], where


async def suspend(world: World, vm: VM) -> None:
    await world.vms.snapshot(vm.id)


async def wake(world: World, vm: VM) -> None:
    return await world.gate.need(vm.id, reason="http", timeout_s=30)


async def restore_older(world: World, vm: VM) -> None:
    oldest = (await world.snapshots(vm))[-1]
    await world.vms.restore(vm.id, oldest.id)


async def restore_disk(world: World, vm: VM) -> None:
    await world.vms.restore(vm.id, None, disk=True)


async def restore_older_disk(world: World, vm: VM) -> None:
    oldest = (await world.snapshots(vm))[-1]
    await world.vms.restore(vm.id, oldest.id, disk=True)


async def stop(world: World, vm: VM) -> None:
    await world.vms.stop(vm.id)


async def start(world: World, vm: VM) -> None:
    await world.vms.start(vm.id)


async def delete(world: World, vm: VM) -> None:
    await world.vms.delete(vm.id)


async def slept_twice(world: World) -> VM:
    vm = await world.asleep()
    await world.request(vm)
    await world.vms.snapshot(vm.id)
    return vm


async def stopped(world: World) -> VM:
    vm = await world.vm()
    await world.vms.stop(vm.id)
    return vm


VERBS: Final[dict[str, tuple[Callable[[World], Awaitable[VM]], Verb]]] = {
    "suspend": (World.vm, suspend),
    "wake": (World.asleep, wake),
    "restore": (slept_twice, restore_older),
    "restore disk": (World.asleep, restore_disk),
    "restore older disk": (slept_twice, restore_older_disk),
    "stop": (World.vm, stop),
    "stop asleep": (World.asleep, stop),
    "start": (stopped, start),
    "delete": (World.asleep, delete),
}


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("name", VERBS)
async def test_no_failure_strands_a_vm(world: World, name: str, lasting: bool) -> None:
    prepare, verb = VERBS[name]
    for n in range(1, MOST):
        vm = await prepare(world)
        fault = Fault(world, n, lasting=lasting)
        with suppress(HatchError):
            await verb(world, vm)
        await settled(world, vm)
        if not fault.at:
            return
        if world.ctx.owners.find(vm.id) is None:
            world.step.interfere = no_hook
            await nothing_left(world, fault.at)
        else:
            await heal_and_check(world, vm, f"{name}, step {n}: {fault.at}")
    raise AssertionError("the verb never ended")


@pytest.mark.parametrize("copy", [False, True], ids=["fresh", "copy"])
async def test_a_failed_create_leaves_nothing(world: World, copy: bool) -> None:
    source = (await world.snapshots(await world.asleep()))[0].id if copy else None
    before = await world.rows()
    for n in range(1, MOST):
        fault = Fault(world, n, lasting=False)
        try:
            made = await world.vms.create(NewVM(snapshot_id=source))
        except HatchError:
            assert fault.at
        else:
            await settled(world, made)
            world.step.interfere = no_hook
            await world.vms.delete(made.id)
            if not fault.at:
                return
        assert await world.rows() == before, fault.at
        assert not world.machines.live(), fault.at
        assert {path.name for path in world.paths.vms.glob("*")} == {vm.id for vm in before}, fault.at
    raise AssertionError("create never ended")
