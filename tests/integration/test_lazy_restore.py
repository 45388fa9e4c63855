"""VMs woken from the object store run before they are whole; whatever happens then, nothing is lost or mixed up."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from hatchvm.base import tasks
from hatchvm.base.errors import Conflict, Corrupt, HatchError, Unavailable
from hatchvm.base.units import MIB
from hatchvm.domain.lifecycle import State
from hatchvm.domain.vm import VM
from hatchvm.node import lazy
from hatchvm.node.agent import LocalNode
from hatchvm.pager import ledger, mount
from hatchvm.snapshots.engine import SnapshotEngine
from hatchvm.snapshots.layout import SnapshotKeys
from hatchvm.testing.pager import faulty
from hatchvm.testing.vmm import no_hook, read_guest
from hatchvm.testing.world import World

TROUBLE: Final = mount.probe()
pytestmark = pytest.mark.skipif(TROUBLE is not None, reason=TROUBLE or "")

#: Steps of a suspend that may be disturbed, first to last.
STEPS: Final = ["stamp", "pause", "pause done", "capture", "capture done", "quit"]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World.running(tmp_path, lazy=True) as world:
        yield world


@pytest.fixture
def faulted(world: World) -> World:
    """Its memory is served by page faults."""
    if (trouble := faulty.trouble()) is not None:
        pytest.skip(trouble)
    world.driver.lazy_memory = "faults"
    return world


def forget(world: World, vm: VM) -> None:
    """The host loses what it had of the sleeping VM."""
    paths = world.paths.vm(vm.id)
    for path in (paths.memory, paths.state, paths.saved, paths.disk):
        path.unlink()


async def lazily(world: World) -> VM:
    """A running VM that was woken from the store."""
    vm = await world.asleep()
    forget(world, vm)
    assert await world.request(vm) == 1
    assert mount.is_mounted(world.paths.vm(vm.id).lazy)
    return vm


def pager_pid(world: World, vm: VM) -> int:
    found = lazy.find(world.paths.vm(vm.id))
    assert found is not None
    return found._process.pid


async def crashed(world: World, vm: VM) -> None:
    os.kill(pager_pid(world, vm), signal.SIGKILL)
    async with asyncio.timeout(30):
        while world.state(vm) is not State.ERROR or world.owner(vm).busy:
            await asyncio.sleep(0.01)


async def left_alone(world: World) -> None:
    """The daemon ends; in this process its watchers would go on."""
    await world.stop()
    node = world.ctx.node
    assert isinstance(node, LocalNode)
    node._live.clear()
    node._pagers.clear()


async def test_it_is_served_and_then_sleeps_and_wakes_like_any_other(world: World) -> None:
    vm = await world.asleep()
    for count in (1, 3, 5):
        forget(world, vm)
        assert await world.request(vm) == count
        await world.vms.snapshot(vm.id)
        assert not mount.is_mounted(world.paths.vm(vm.id).lazy)
        assert lazy.find(world.paths.vm(vm.id)) is None
        assert await world.request(vm) == count + 1
        assert not mount.is_mounted(world.paths.vm(vm.id).lazy)
        await world.vms.snapshot(vm.id)


async def test_a_copy_runs_lazily_beside_its_original(world: World) -> None:
    vm = await world.vm()
    await world.request(vm)
    taken = await world.vms.snapshot(vm.id)
    copy = await world.vm(snapshot_id=taken.id)
    assert await world.request(copy) == 2
    await world.vms.delete(vm.id)
    await world.vms.snapshot(copy.id)
    assert await world.request(copy) == 3


@pytest.mark.parametrize("step", STEPS)
async def test_a_suspend_can_be_taken_back_at_every_step(world: World, step: str) -> None:
    vm = await lazily(world)
    answers: list[asyncio.Task[int]] = []

    async def visit(name: str) -> None:
        if name == step and not answers:
            answers.append(tasks.spawn(world.request(vm), name="visitor"))

    world.step.interfere = visit
    with suppress(Conflict):
        await world.vms.snapshot(vm.id)
    assert await answers[0] == 2
    world.step.interfere = no_hook
    await world.vms.snapshot(vm.id)
    assert await world.request(vm) == 3


async def test_a_pager_that_dies_costs_the_run_and_not_what_was_synced(world: World) -> None:
    vm = await lazily(world)
    disk = world.paths.vm(vm.id).lazy / "disk"
    fd = os.open(disk, os.O_RDWR)
    os.fsync(fd)
    os.close(fd)
    ticks = read_guest(disk)["ticks"]
    await crashed(world, vm)
    assert "memory" in world.now(vm).state_reason
    assert not world.machines.live()
    assert not mount.is_mounted(world.paths.vm(vm.id).lazy)
    await world.vms.start(vm.id)
    assert ledger.source(world.paths.vm(vm.id)) is None
    assert world.disk(vm)["ticks"] == ticks


async def test_a_vm_that_was_stopped_before_it_was_whole_boots_a_whole_disk(world: World) -> None:
    vm = await lazily(world)
    await world.vms.stop(vm.id)
    assert not mount.is_mounted(world.paths.vm(vm.id).lazy)
    await world.vms.start(vm.id)
    assert world.disk(vm)["ticks"] > 0


async def test_the_snapshot_of_an_incomplete_disk_is_not_deleted_under_it(world: World) -> None:
    vm = await lazily(world)
    await crashed(world, vm)
    for snapshot in await world.snapshots(vm):
        await world.house.snapshots.delete(snapshot.id)
    await world.vms.start(vm.id)
    assert world.disk(vm)["ticks"] > 0


async def test_a_daemon_that_restarts_finds_it_served(tmp_path: Path) -> None:
    first = await World(tmp_path, lazy=True).start()
    vm = await lazily(first)
    pid = pager_pid(first, vm)
    await left_alone(first)
    async with World.running(tmp_path, lazy=True) as second:
        assert second.state(vm) is State.RUNNING
        assert pager_pid(second, vm) == pid
        assert await second.request(vm) == 2
        await second.vms.snapshot(vm.id)
        assert await second.request(vm) == 3
        assert not mount.is_mounted(second.paths.vm(vm.id).lazy)


async def test_a_daemon_that_restarts_ends_a_vm_whose_pager_died(tmp_path: Path) -> None:
    first = await World(tmp_path, lazy=True).start()
    vm = await lazily(first)
    await left_alone(first)
    os.kill(pager_pid(first, vm), signal.SIGKILL)
    async with World.running(tmp_path, lazy=True) as second:
        assert second.state(vm) is State.STOPPED
        assert not second.machines.live()
        await second.vms.start(vm.id)


async def large(world: World) -> tuple[VM, list[Path]]:
    """A sleeping VM that this host has forgotten, and those of its packs that a wake does not need."""
    vm = await world.vm(mem_mib=96)
    with world.paths.vm(vm.id).memory.open("r+b") as memory:
        memory.seek(8 * MIB)
        memory.write(os.urandom(60 * MIB))
    taken = await world.vms.snapshot(vm.id)
    forget(world, vm)
    engine = SnapshotEngine(world.objects, world.paths.packs, world.clock)
    manifest, _ = await engine.open(SnapshotKeys(vm.id, taken.id))
    needed = {
        int(manifest.frames["pack"][(slot - 1) // manifest.frame_slots])
        for stream in manifest.streams
        for slot in stream.slots[:1]
    }
    others = [pack.id for number, pack in enumerate(manifest.packs) if number not in needed]
    assert others
    return vm, [path for path in world.paths.objects.glob("packs/*/*") if path.name in others]


async def test_while_the_store_is_away_it_runs_on_and_cannot_be_suspended(world: World) -> None:
    vm, packs = await large(world)
    away = [pack.rename(pack.with_suffix(".away")) for pack in packs]
    for pack in packs:
        pack.mkdir()
    assert await world.request(vm) == 1
    with pytest.raises(HatchError, match="store cannot be read"):
        await world.vms.snapshot(vm.id)
    assert world.state(vm) is State.RUNNING
    assert await world.request(vm) == 2
    for pack, moved in zip(packs, away, strict=True):
        pack.rmdir()
        moved.rename(pack)
    await world.vms.snapshot(vm.id)
    assert await world.request(vm) == 3


async def test_damage_is_named_and_never_becomes_a_snapshot(world: World) -> None:
    vm, packs = await large(world)
    for pack in packs:
        pack.chmod(0o600)
        pack.write_bytes(bytes(pack.stat().st_size))
    assert await world.request(vm) == 1
    with pytest.raises(Corrupt, match="damaged"):
        await world.vms.snapshot(vm.id)
    assert await world.request(vm) == 2


async def test_damage_of_what_a_wake_needs_is_told(world: World) -> None:
    vm = await world.asleep()
    forget(world, vm)
    for pack in world.paths.objects.glob("packs/*/*"):
        pack.chmod(0o600)
        pack.write_bytes(bytes(pack.stat().st_size))
    with pytest.raises(Unavailable):
        await world.request(vm)
    assert "damaged" in world.now(vm).state_reason
    assert not mount.is_mounted(world.paths.vm(vm.id).lazy)


async def test_memory_by_faults_is_served_and_then_the_vm_sleeps_and_wakes_like_any_other(faulted: World) -> None:
    vm = await faulted.asleep()
    paths = faulted.paths.vm(vm.id)
    for count in (1, 3):
        forget(faulted, vm)
        assert await faulted.request(vm) == count
        assert not (paths.lazy / "memory").exists()
        assert paths.faults.is_socket()
        await faulted.vms.snapshot(vm.id)
        assert lazy.find(paths) is None
        assert not paths.faults.exists()
        assert await faulted.request(vm) == count + 1
        await faulted.vms.snapshot(vm.id)


async def test_a_pager_that_dies_costs_the_run_of_a_vm_that_it_serves_by_faults(faulted: World) -> None:
    vm = await lazily(faulted)
    await crashed(faulted, vm)
    assert "memory" in faulted.now(vm).state_reason
    assert not faulted.machines.live()
    await faulted.vms.start(vm.id)
    assert faulted.disk(vm)["ticks"] > 0


async def test_damage_of_a_page_that_a_wake_faults_in_is_told(faulted: World) -> None:
    vm = await faulted.asleep()
    forget(faulted, vm)
    for pack in faulted.paths.objects.glob("packs/*/*"):
        pack.chmod(0o600)
        pack.write_bytes(bytes(pack.stat().st_size))
    with pytest.raises(Unavailable):
        await faulted.request(vm)
    assert "damaged" in faulted.now(vm).state_reason
    assert not faulted.machines.live()
