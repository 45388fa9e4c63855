"""Snapshots of a sleeping VM: stored in the background, retried, cut short by a wake, kept few, copied."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from hatchvm.base import tasks
from hatchvm.base.errors import Conflict, Corrupt, Exhausted, Invalid, NotFound, Unavailable
from hatchvm.domain.lifecycle import State
from hatchvm.domain.snapshot import SnapshotStatus
from hatchvm.domain.vm import VM, NewVM
from hatchvm.testing.vmm import no_hook
from hatchvm.testing.world import World


async def uploaded(world: World, vm: VM) -> None:
    upload = world.owner(vm).upload
    assert upload is not None
    await asyncio.wait([upload])


def stored(world: World, kind: str) -> list[str]:
    """The objects of that kind, by name. Unlike a glob it does not mind folders that vanish meanwhile."""
    return [name for _, _, names in os.walk(world.paths.objects / kind) for name in names if name != "clock"]


async def collected(world: World, *kinds: str) -> None:
    """Return when nothing of these kinds is left. A file system's clock may stand still for some milliseconds."""
    async with asyncio.timeout(60):
        while any(stored(world, kind) for kind in kinds):
            await world.house.storage.collect(0)


async def status(world: World, vm: VM) -> list[tuple[SnapshotStatus, str]]:
    return [(row.status, row.error) for row in await world.snapshots(vm)]


async def test_a_store_that_is_down_costs_a_retry_not_the_vm(world: World) -> None:
    vm = await world.vm()
    world.step.fail_at("put", Unavailable("the store is down"))
    with pytest.raises(Unavailable, match="suspended and kept on this host, but storing its snapshot failed"):
        await world.vms.snapshot(vm.id)
    assert world.state(vm) is State.SNAPSHOTTED
    assert await status(world, vm) == [(SnapshotStatus.PENDING, "the store is down")]
    world.step.interfere = no_hook
    world.clock.advance(1)
    await uploaded(world, vm)
    assert await status(world, vm) == [(SnapshotStatus.COMMITTED, "")]


async def test_a_disk_that_is_full_for_the_rows_too_is_survived(world: World) -> None:
    vm = await world.vm()
    full = False

    async def interfere(at: str) -> None:
        nonlocal full
        full |= at == "put"
        if full and at in ("put", "commit"):
            raise Exhausted("the disk is full")

    world.step.interfere = interfere
    with pytest.raises(Unavailable, match="kept on this host"):
        await world.vms.snapshot(vm.id)
    world.step.interfere = no_hook
    world.clock.advance(1)
    await uploaded(world, vm)
    assert await status(world, vm) == [(SnapshotStatus.COMMITTED, "")]


async def test_a_commit_whose_row_could_not_be_written_is_found_again(world: World) -> None:
    vm = await world.vm()

    async def interfere(at: str) -> None:
        if at == "commit" and stored(world, "snapshots"):
            raise Unavailable("the database is busy")

    world.step.interfere = interfere
    with pytest.raises(Unavailable):
        await world.vms.snapshot(vm.id)
    world.step.interfere = no_hook
    world.clock.advance(1)
    await uploaded(world, vm)
    assert await status(world, vm) == [(SnapshotStatus.COMMITTED, "")]


async def test_a_wake_cuts_an_upload_short(world: World) -> None:
    vm = await world.vm()
    reached = asyncio.Event()

    async def hang(at: str) -> None:
        if at == "put":
            reached.set()
            await asyncio.Event().wait()

    world.step.interfere = hang
    suspend = tasks.spawn(world.vms.snapshot(vm.id), name="suspend")
    await reached.wait()
    assert await world.request(vm) == 1
    with pytest.raises(Conflict, match="a request woke the vm before its snapshot was stored"):
        await suspend
    assert await world.snapshots(vm) == []


async def test_what_a_cut_upload_had_stored_is_collected(world: World) -> None:
    vm = await world.vm()
    reached = asyncio.Event()

    async def hang(at: str) -> None:
        if at == "put done":
            reached.set()
            await asyncio.Event().wait()

    world.step.interfere = hang
    suspend = tasks.spawn(world.vms.snapshot(vm.id), name="suspend")
    await reached.wait()
    world.step.interfere = no_hook
    assert await world.request(vm) == 1
    with pytest.raises(Conflict):
        await suspend
    assert stored(world, "packs")
    assert not stored(world, "snapshots")
    await collected(world, "packs")


async def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    async with World.running(tmp_path, snapshot_keep=2) as world:
        vm = await world.asleep()
        for _ in range(3):
            await world.request(vm)
            await world.vms.snapshot(vm.id)
            await uploaded(world, vm)
        rows = await world.snapshots(vm)
        assert len(rows) == 2
        kept = {path.parent.name for path in world.paths.objects.rglob("manifest")}
        assert kept == {row.id for row in rows}


async def test_an_older_snapshot_brings_back_its_memory_and_its_disk(world: World) -> None:
    vm = await world.vm()
    await world.request(vm)
    first = await world.vms.snapshot(vm.id)
    assert await world.request(vm) == 2
    second = await world.vms.snapshot(vm.id)
    await world.vms.restore(vm.id, first.id)
    assert await world.request(vm) == 2
    await world.vms.stop(vm.id)
    await world.vms.restore(vm.id, second.id)
    assert await world.request(vm) == 3
    with pytest.raises(Conflict, match="it cannot be restored now"):
        await world.vms.restore(vm.id, first.id)


async def test_a_snapshot_asked_for_by_name_is_that_one_even_after_a_restore_that_did_not_come_up(world: World) -> None:
    vm = await world.vm()
    first = await world.vms.snapshot(vm.id)
    assert await world.request(vm) == 1
    second = await world.vms.snapshot(vm.id)
    world.step.fail_at("restore", Unavailable("no"))
    with pytest.raises(Unavailable):
        await world.vms.restore(vm.id, first.id)
    world.step.interfere = no_hook
    assert world.state(vm) is State.SNAPSHOTTED
    await world.vms.restore(vm.id, second.id)
    assert await world.request(vm) == 2, "the second one had answered once"


async def test_fetched_memory_is_never_stored_as_another_snapshot(world: World) -> None:
    vm = await world.vm()
    first = await world.vms.snapshot(vm.id)
    await world.request(vm)
    second = await world.vms.snapshot(vm.id)
    image = await world.ctx.image_of(vm)
    await world.ctx.node.fetch(vm, image, first, lazily=False)
    with pytest.raises(Corrupt, match="that of another snapshot"):
        await world.ctx.node.upload(vm, second, [first])


async def test_lost_local_files_are_fetched_from_the_store(world: World) -> None:
    vm = await world.vm()
    await world.request(vm)
    await world.vms.snapshot(vm.id)
    world.paths.vm(vm.id).state.unlink()
    assert await world.request(vm) == 2


async def test_lost_local_files_that_were_never_stored_are_not_replaced_by_older_ones(world: World) -> None:
    vm = await world.asleep()
    await world.request(vm)
    world.step.fail_at("put", Unavailable("the store is down"))
    with pytest.raises(Unavailable):
        await world.vms.snapshot(vm.id)
    world.paths.vm(vm.id).state.unlink()
    with pytest.raises(Unavailable, match="failed to wake vm"):
        await world.request(vm)
    assert "missing" in world.now(vm).state_reason
    await world.vms.stop(vm.id)
    await world.vms.start(vm.id)
    assert await world.request(vm) == 1


async def test_a_copy_starts_from_the_snapshot_and_goes_its_own_way(world: World) -> None:
    vm = await world.vm()
    await world.request(vm)
    taken = await world.vms.snapshot(vm.id)
    copy = await world.vm(snapshot_id=taken.id)
    assert await world.request(copy) == 2
    assert await world.request(copy) == 3
    assert await world.request(vm) == 2
    with pytest.raises(Invalid, match="mem_mib: a copy of a snapshot keeps the snapshot's"):
        await world.vms.create(NewVM(snapshot_id=taken.id, mem_mib=64))


async def test_a_snapshot_of_another_vm_is_not_this_ones(world: World) -> None:
    taken = await world.vms.snapshot((await world.vm()).id)
    other = await world.asleep()
    with pytest.raises(NotFound, match="snapshot not found"):
        await world.vms.restore(other.id, taken.id)


async def test_deleting_a_snapshot(world: World) -> None:
    vm = await world.vm()
    taken = await world.vms.snapshot(vm.id)
    with pytest.raises(Conflict, match="sleeps on this snapshot"):
        await world.house.snapshots.delete(taken.id)
    assert await world.request(vm) == 1
    await world.house.snapshots.delete(taken.id)
    assert await world.snapshots(vm) == []
    assert stored(world, "snapshots") == []
    await collected(world, "packs", "trash")
