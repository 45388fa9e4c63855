"""Which pages a guest wrote is known from one stored snapshot to the next, or nothing is said.

The guest of these stories writes far pages now and then, and notices one that is lost: `World` then fails at its end.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hatchvm.base import tasks
from hatchvm.base.errors import Conflict, Exhausted, HatchError, Unavailable
from hatchvm.domain.snapshot import Snapshot
from hatchvm.domain.vm import VM
from hatchvm.node import changed
from hatchvm.snapshots.local import Source
from hatchvm.testing.vmm import no_hook
from hatchvm.testing.world import BOOT_ID, World


def known(world: World, vm: VM) -> tuple[str, list[int]] | None:
    """(snapshot, changed pages), as it is written down."""
    since = changed.read(world.paths.vm(vm.id), BOOT_ID)
    return None if since is None else (since.keys.snapshot_id, since.pages.tolist())


async def stored(world: World, vm: VM) -> tuple[Snapshot, tuple[str, list[int]] | None]:
    """A suspend; its snapshot, and what was known when it was stored."""
    seen: list[tuple[str, list[int]] | None] = []

    async def look(step: str) -> None:
        if step == "put" and not seen:
            seen.append(known(world, vm))

    world.step.interfere = look
    snapshot = await world.vms.snapshot(vm.id)
    world.step.interfere = no_hook
    assert known(world, vm) == (snapshot.id, [])
    return snapshot, seen[0]


async def comes_back(world: World, vm: VM, snapshot: Snapshot) -> None:
    """What was stored is what the guest had."""
    requests = world.memory(vm)["requests"]
    await world.vms.restore(vm.id, snapshot.id)
    assert await world.request(vm) == requests + 1
    assert not world.machines.violations


async def test_of_a_guest_that_booted_nothing_is_known_before_its_first_upload(world: World) -> None:
    vm = await world.vm()
    first, at = await stored(world, vm)
    assert at is None
    await world.request(vm)
    assert known(world, vm) == (first.id, [])  # what it writes while it runs is asked for at the end
    second, at = await stored(world, vm)
    assert at is not None
    assert at[0] == first.id
    assert at[1] == [0, 2047]
    await comes_back(world, vm, second)


async def test_an_upload_reads_what_changed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = await world.asleep()
    for _ in range(4):
        await world.request(vm)
        await world.vms.snapshot(vm.id)
    await world.request(vm)
    read, real = [], Source.read_into

    def read_into(source: Source, buffer: memoryview, offset: int) -> None:
        read.append((source.name, offset // 4096))
        real(source, buffer, offset)

    monkeypatch.setattr(Source, "read_into", read_into)
    _, before = await stored(world, vm)
    assert before is not None
    assert {page for name, page in read if name == "memory"} == set(before[1]) < {0, 2047, 2730, 4095, 8191}


async def disturbed(world: World, vm: VM, at: str, nth: int = 1) -> None:
    """A suspend, and a request that comes when it comes to this step for the nth time."""
    visitors: list[asyncio.Task[int]] = []

    async def visit(step: str) -> None:
        nonlocal nth
        nth -= step == at
        if not nth and not visitors:
            visitors.append(tasks.spawn(world.request(vm), name="visitor"))
            for _ in range(5):
                await asyncio.sleep(0)
            while world.owner(vm).upload is not None:  # until it is stopped
                await asyncio.sleep(0)

    world.step.interfere = visit
    try:
        await world.vms.snapshot(vm.id)
    finally:
        await visitors[0]


@pytest.mark.parametrize("at", ["capture done", "put"])
async def test_a_guest_that_is_wanted_back_keeps_what_it_had_changed(world: World, at: str) -> None:
    vm = await world.asleep()
    base = (await world.snapshots(vm))[0]
    await world.request(vm)
    with pytest.raises(Conflict):
        await disturbed(world, vm, at)
    assert known(world, vm) == (base.id, [0, 2047])
    second, before = await stored(world, vm)
    assert before is not None
    assert before[0] == base.id
    assert 2047 in before[1]  # written before it was taken back, and not again
    await comes_back(world, vm, second)


async def test_an_upload_that_ended_although_it_was_stopped(world: World) -> None:
    vm = await world.asleep()
    await world.request(vm)
    await disturbed(world, vm, "put done", 2)  # the manifest's
    base = (await world.snapshots(vm))[0]
    assert known(world, vm) == (base.id, [])
    second, before = await stored(world, vm)
    assert before is not None
    assert before[0] == base.id
    await comes_back(world, vm, second)


@pytest.mark.parametrize("at", ["capture", "capture done"])
async def test_a_capture_that_failed_may_have_told_nobody(world: World, at: str) -> None:
    vm = await world.asleep()
    await world.request(vm)
    world.step.fail_at(at, Exhausted("the disk is full"))
    with pytest.raises(HatchError):
        await world.vms.snapshot(vm.id)
    assert known(world, vm) is None
    world.step.interfere = no_hook
    snapshot, before = await stored(world, vm)
    assert before is None
    await comes_back(world, vm, snapshot)


async def test_a_driver_that_does_not_tell(world: World) -> None:
    vm = await world.asleep()
    for tells in (False, True, False):
        await world.request(vm)
        world.machines.tells = tells
        snapshot, before = await stored(world, vm)
        assert (before is not None) == tells
    await comes_back(world, vm, snapshot)


async def test_a_store_that_was_away_costs_no_knowledge(world: World) -> None:
    vm = await world.asleep()
    base = (await world.snapshots(vm))[0]
    await world.request(vm)
    world.step.fail_at("put", Unavailable("the store is down"))
    with pytest.raises(Unavailable):
        await world.vms.snapshot(vm.id)
    assert known(world, vm) == (base.id, [0, 2047])
    world.step.interfere = no_hook
    assert await world.request(vm) == 2
    second, before = await stored(world, vm)
    assert before == (base.id, [0, 2047])
    await comes_back(world, vm, second)


async def test_an_older_snapshot_is_what_its_memory_has(world: World) -> None:
    vm = await world.vm()
    first, _ = await stored(world, vm)
    for _ in range(2):
        await world.request(vm)
        await stored(world, vm)
    await world.vms.restore(vm.id, first.id)
    assert known(world, vm) == (first.id, [])
    again, before = await stored(world, vm)
    assert before is not None
    assert before[0] == first.id
    await comes_back(world, vm, again)


async def test_on_a_full_disk_nothing_is_known_rather_than_something_old(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = await world.vm()
    first, _ = await stored(world, vm)
    await world.request(vm)
    await stored(world, vm)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(changed, "write_atomic", full)
        await world.vms.restore(vm.id, first.id)
    assert known(world, vm) is None
    again, before = await stored(world, vm)
    assert before is None
    await comes_back(world, vm, again)


async def test_a_base_that_is_deleted_is_done_without(world: World) -> None:
    vm = await world.asleep()
    await world.request(vm)
    await world.house.snapshots.delete((await world.snapshots(vm))[0].id)
    await world.house.storage.collect(0)
    snapshot, before = await stored(world, vm)
    assert before is not None
    await comes_back(world, vm, snapshot)


async def test_a_copy_begins_with_what_it_was_made_of(world: World) -> None:
    vm = await world.asleep()
    source = (await world.snapshots(vm))[0]
    copy = await world.vm(snapshot_id=source.id)
    assert known(world, copy) == (source.id, [])
    snapshot, before = await stored(world, copy)
    assert before is not None
    assert before[0] == source.id
    await comes_back(world, copy, snapshot)


async def test_with_another_memory_it_is_forgotten(world: World) -> None:
    vm = await world.asleep()
    await world.vms.restore(vm.id, None, disk=True)
    assert known(world, vm) is None
    await stored(world, vm)
    await world.vms.restore(vm.id, (await world.snapshots(vm))[-1].id, disk=True)
    assert known(world, vm) is None
    await stored(world, vm)
    await world.vms.stop(vm.id)
    assert known(world, vm) is None


@pytest.mark.parametrize("asleep", [True, False])
async def test_a_restarted_daemon_knows_of_those_that_sleep(tmp_path: Path, asleep: bool) -> None:
    first = await World(tmp_path).start()
    vm = await first.asleep()
    if not asleep:
        await first.request(vm)
    await first.stop()
    async with World.running(tmp_path) as second:
        assert (known(second, vm) is not None) == asleep
        await second.request(vm)
        snapshot, before = await stored(second, vm)
        assert (before is not None) == asleep
        await comes_back(second, vm, snapshot)


async def test_after_another_boot_of_the_host_nothing_is_known(tmp_path: Path) -> None:
    first = await World(tmp_path).start()
    vm = await first.asleep()
    await first.stop()
    async with World.running(tmp_path, boot_id="boot-2") as second:
        await second.request(vm)
        await second.vms.snapshot(vm.id)
        since = changed.read(second.paths.vm(vm.id), "boot-2")
        assert since is not None
