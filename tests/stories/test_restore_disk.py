"""`restore` with mode `disk`: the guest boots from its newest disk, or a snapshot's; only its memory is forgotten."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from hatchvm.base import tasks
from hatchvm.base.errors import Conflict, Exhausted, NotFound, Unavailable, Unsupported
from hatchvm.domain.lifecycle import State
from hatchvm.domain.snapshot import SnapshotStatus
from hatchvm.domain.vm import VM
from hatchvm.node import launch
from hatchvm.testing.vmm import no_hook
from hatchvm.testing.world import World


def disk(world: World, vm: VM) -> int:
    """How far the guest's disk has come. A boot adds nothing to it."""
    return int(world.disk(vm)["ticks"])


def lose_memory(world: World, vm: VM) -> None:
    """As if this host had never had the saved VM, disk included: what is there instead must not be booted."""
    paths = world.paths.vm(vm.id)
    paths.saved.unlink()
    paths.memory.unlink()
    paths.disk.write_bytes(b'{"ticks": -1}')


async def pending(world: World) -> VM:
    """A sleeping VM whose snapshot cannot be stored, with a committed one that is older."""
    vm = await world.asleep()
    await world.request(vm)
    world.step.fail_at("put", Unavailable("the store is down"))
    with pytest.raises(Unavailable):
        await world.vms.snapshot(vm.id)
    assert [row.status for row in await world.snapshots(vm)] == [SnapshotStatus.PENDING, SnapshotStatus.COMMITTED]
    return vm


async def boots(world: World, vm: VM, snapshot_id: str | None = None) -> None:
    """Restore its disk: it runs, and no memory came back."""
    life = world.memory(vm)["life"] if world.paths.vm(vm.id).memory.exists() else None
    asked_at = world.clock.now()
    booted = await world.vms.restore(vm.id, snapshot_id, disk=True)
    assert booted.state is State.RUNNING
    assert booted.started_at is not None and booted.started_at > asked_at
    assert world.memory(vm)["life"] != life
    assert await world.request(vm) == 1


async def test_a_sleeping_vm_boots_the_disk_it_fell_asleep_with(world: World) -> None:
    vm = await world.asleep()
    before = disk(world, vm)
    world.step.taken.clear()
    await boots(world, vm)
    assert disk(world, vm) == before
    assert "get" not in world.step.taken, "the newest disk is here"
    assert "restore" not in world.step.taken
    [kept] = await world.snapshots(vm)
    assert kept.status is SnapshotStatus.COMMITTED


async def test_a_disk_that_is_not_stored_yet_is_the_newest(world: World) -> None:
    vm = await pending(world)
    before = disk(world, vm)
    newest, older = await world.snapshots(vm)
    await boots(world, vm, newest.id)
    assert disk(world, vm) == before
    assert await world.snapshots(vm) == [older], "what can be restored no more is forgotten"
    assert world.owner(vm).pending is None


async def test_a_host_that_lost_the_vm_boots_the_newest_stored_disk(world: World) -> None:
    vm = await world.asleep()
    await world.request(vm)
    await world.vms.snapshot(vm.id)
    before = disk(world, vm)
    lose_memory(world, vm)
    await boots(world, vm)
    assert disk(world, vm) == before


@pytest.mark.parametrize("state", [State.SNAPSHOTTED, State.STOPPED, State.ERROR])
async def test_an_older_disk_whatever_state_the_vm_rests_in(world: World, state: State) -> None:
    vm = await world.asleep()
    older, [snapshot] = disk(world, vm), await world.snapshots(vm)
    await world.request(vm)
    await world.vms.snapshot(vm.id)
    if state is State.STOPPED:
        await world.vms.stop(vm.id)
    elif state is State.ERROR:
        await world.request(vm)
        world.crash(vm)
        while world.state(vm) is not State.ERROR:
            await asyncio.sleep(0)
    assert disk(world, vm) > older
    await boots(world, vm, snapshot.id)
    assert disk(world, vm) == older
    assert world.now(vm).state_reason == ""


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_vm_at_rest_goes_back_to_the_newest_stored_disk(world: World, stopped: bool) -> None:
    vm = await world.asleep()
    stored = disk(world, vm)
    await world.request(vm)
    if stopped:
        await world.vms.stop(vm.id)
    else:
        world.crash(vm)
        while world.state(vm) is not State.ERROR:
            await asyncio.sleep(0)
    assert disk(world, vm) > stored
    await boots(world, vm)
    assert disk(world, vm) == stored


async def test_memory_that_fits_no_host_does_not_matter(world: World) -> None:
    vm = await world.asleep()
    [snapshot] = await world.snapshots(vm)
    before = disk(world, vm)
    world.driver.differs = {"cpu_model": "Toes", "vmm_version": "2"}
    await boots(world, vm)
    await world.vms.snapshot(vm.id)
    world.driver.differs = {"accel": "abacus"}
    await boots(world, vm, snapshot.id)
    assert disk(world, vm) == before


async def test_another_image_under_the_disk_does(world: World) -> None:
    vm = await world.asleep()
    [snapshot] = await world.snapshots(vm)
    before, image = disk(world, vm), await world.ctx.image_of(vm)
    with pytest.raises(Unsupported, match="another image"):
        await world.ctx.node.fetch_disk(vm, replace(image, digest="other"), snapshot)
    assert disk(world, vm) == before
    assert await world.request(vm) == 1


async def test_what_has_no_disk_is_refused(world: World) -> None:
    vm = await world.vm()
    world.paths.vm(vm.id).disk.unlink()
    snapshot = await world.vms.snapshot(vm.id)
    with pytest.raises(Unsupported, match="holds no disk"):
        await world.vms.restore(vm.id, snapshot.id, disk=True)
    assert world.state(vm) is State.SNAPSHOTTED
    assert await world.request(vm) == 1


async def test_what_cannot_be_asked_for(world: World) -> None:
    vm, other = await world.vm(), await world.asleep()
    [theirs] = await world.snapshots(other)
    with pytest.raises(Conflict, match='vm is in state "running"; it cannot be restored now'):
        await world.vms.restore(vm.id, None, disk=True)
    await world.vms.stop(vm.id)
    with pytest.raises(Conflict, match="start it to boot from its disk"):
        await world.vms.restore(vm.id, None, disk=True)
    for unknown in (theirs.id, "snap-000000000000"):
        with pytest.raises(NotFound, match="snapshot not found"):
            await world.vms.restore(vm.id, unknown, disk=True)
    assert world.state(vm) is State.STOPPED


async def test_a_disk_that_cannot_be_fetched_changes_nothing(world: World) -> None:
    vm = await pending(world)
    newest, older = await world.snapshots(vm)
    before = disk(world, vm)
    world.step.fail_at("get", Unavailable("the store is down"))
    with pytest.raises(Unavailable, match="the store is down"):
        await world.vms.restore(vm.id, older.id, disk=True)
    assert (world.state(vm), disk(world, vm)) == (State.SNAPSHOTTED, before)
    assert world.now(vm).state_reason == "restore failed: the store is down"
    world.step.interfere = no_hook
    await stored(world, vm)
    assert [row.id for row in await world.snapshots(vm)] == [newest.id, older.id]
    assert await world.request(vm) == 2


async def test_no_room_to_boot_leaves_it_asleep(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = await pending(world)

    def no_room(*_: object) -> None:
        raise Exhausted("make room")

    with monkeypatch.context() as patch:
        patch.setattr(launch, "ensure_room", no_room)
        with pytest.raises(Exhausted, match="make room"):
            await world.vms.restore(vm.id, None, disk=True)
    assert world.state(vm) is State.SNAPSHOTTED
    world.step.interfere = no_hook
    await stored(world, vm)
    assert await world.request(vm) == 2


@pytest.mark.parametrize("named", [False, True])
async def test_a_boot_that_fails_leaves_the_disk_to_be_started(world: World, named: bool) -> None:
    vm = await pending(world)
    older = (await world.snapshots(vm))[-1]
    world.step.fail_at("launch", Unsupported("the VMM did not start"))
    with pytest.raises(Unsupported, match="the VMM did not start"):
        await world.vms.restore(vm.id, older.id if named else None, disk=True)
    world.step.interfere = no_hook
    assert (world.state(vm), world.now(vm).state_reason) == (State.STOPPED, "restore failed: the VMM did not start")
    assert await world.snapshots(vm) == [older]
    assert not world.machines.live()
    await world.vms.start(vm.id)
    assert await world.request(vm) == 1


async def test_a_request_that_comes_meanwhile_waits_for_the_boot(world: World) -> None:
    vm = await world.asleep()
    hang = world.step.hang_at("launch")
    restore = tasks.spawn(world.vms.restore(vm.id, None, disk=True), name="restore")
    await hang.reached.wait()
    request = tasks.spawn(world.request(vm), name="request")
    await asyncio.sleep(0)
    hang.go.set()
    await restore
    assert await request == 1
    assert world.step.taken.count("launch") == 2, "once when it was made, once now"
    assert "restore" not in world.step.taken


async def stored(world: World, vm: VM) -> None:
    """The upload goes on, and ends well."""
    world.clock.advance(1)
    upload = world.owner(vm).upload
    assert upload is not None
    await asyncio.wait([upload])
    assert world.owner(vm).pending is None
