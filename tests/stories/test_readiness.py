"""`/readyz` and `/status`: a house that cannot run VMs, store snapshots or read its rows says which."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from hatchvm.base import tasks
from hatchvm.base.errors import Conflict, Corrupt, HatchError, Unavailable, Unsupported
from hatchvm.control.vms import upload
from hatchvm.testing.vmm import no_hook
from hatchvm.testing.world import World


async def test_a_whole_house_is_ready(world: World) -> None:
    await world.house.ready()


async def test_a_snapshot_that_is_not_stored_yet_is_told_and_does_not_make_it_unready(world: World) -> None:
    vm, awake = await world.vm(), await world.vm()
    overview = await world.house.overview()
    assert (overview.store, overview.vms, overview.uploads) == ("directory", {"running": 2}, [])

    world.step.fail_at("put", Unavailable("the store is down"))
    with pytest.raises(Unavailable):
        await world.vms.snapshot(vm.id)
    await breathe()
    overview = await world.house.overview()
    assert overview.vms == {"running": 1, "snapshotted": 1}
    [waits] = overview.uploads
    [row] = await world.snapshots(vm)
    assert (waits.vm_id, waits.snapshot_id, waits.since) == (vm.id, row.id, row.created_at)
    assert (waits.error, waits.uploading) == ("the store is down", False)
    assert waits.retry_at is not None and waits.retry_at > world.clock.now()
    await world.house.ready()
    before_s = waits.waited_s
    world.clock.advance(0.5)
    [waits] = upload.pending(world.ctx)
    assert waits.waited_s >= before_s + 0.5
    with pytest.raises(Unavailable):
        await world.vms.snapshot(awake.id)
    assert [one.vm_id for one in upload.pending(world.ctx)] == [vm.id, awake.id], "the oldest first"
    world.step.interfere = no_hook
    world.clock.advance(60)
    for one in (vm, awake):
        task = world.owner(one).upload
        assert task is not None
        await asyncio.wait([task])
    assert upload.pending(world.ctx) == []


async def test_an_upload_under_way_and_one_that_is_lost_are_told_apart(world: World) -> None:
    vm = await world.vm()
    hang = world.step.hang_at("put")
    snapshot = tasks.spawn(world.vms.snapshot(vm.id), name="snapshot")
    await hang.reached.wait()
    [waits] = upload.pending(world.ctx)
    assert (waits.error, waits.uploading, waits.retry_at) == ("", True, None)
    assert await world.request(vm) == 1
    with pytest.raises(Conflict):
        await snapshot
    assert upload.pending(world.ctx) == []

    async def damage(at: str) -> None:
        if at == "quit done":
            world.paths.vm(vm.id).state.write_bytes(b"damage")

    world.step.interfere = damage
    with pytest.raises(Corrupt):
        await world.vms.snapshot(vm.id)
    await breathe()
    [waits] = upload.pending(world.ctx)
    assert (waits.uploading, waits.retry_at) == (False, None)
    assert waits.error.startswith("the saved device state or memory is not what was saved")


async def test_an_attempt_that_follows_a_failure_is_under_way(world: World) -> None:
    vm = await world.vm()
    again = asyncio.Event()
    failed = False

    async def down_then_slow(at: str) -> None:
        nonlocal failed
        if at == "put" and not failed:
            failed = True
            raise Unavailable("the store is down")
        if at == "put":
            again.set()
            await asyncio.Event().wait()

    world.step.interfere = down_then_slow
    with pytest.raises(Unavailable):
        await world.vms.snapshot(vm.id)
    world.clock.advance(1)
    await again.wait()
    [waits] = upload.pending(world.ctx)
    assert (waits.error, waits.uploading, waits.retry_at) == ("the store is down", True, None)


async def breathe() -> None:
    """Let whoever can go on go on."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_store_that_was_fine_is_not_asked_again_for_some_seconds_and_a_broken_one_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0
    broken: HatchError | None = None

    async def check() -> None:
        nonlocal asked
        asked += 1
        if broken is not None:
            raise broken

    monkeypatch.setattr(world.objects, "check", check)
    for expected in (1, 1):
        await world.house.ready()
        assert asked == expected
    world.clock.advance(9.9)
    await world.house.ready()
    assert asked == 1
    world.clock.advance(0.1)
    broken = Unavailable("the store is down")
    for expected in (2, 3):
        with pytest.raises(Unavailable, match="not ready: the store is down"):
            await world.house.ready()
        assert asked == expected
    broken = None
    await world.house.ready()
    assert asked == 4


async def test_a_missing_vmm_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def missing() -> str:
        raise Unsupported("qemu is not installed")

    monkeypatch.setattr(world.driver, "check", missing)
    with pytest.raises(Unavailable, match="not ready: qemu is not installed"):
        await world.house.ready()


async def test_a_store_that_cannot_be_written_is_named(world: World) -> None:
    shutil.rmtree(world.paths.objects, ignore_errors=True)
    world.paths.objects.write_text("a file where the folder should be")
    with pytest.raises(HatchError, match="not ready: "):
        await world.house.ready()
