"""The daemon looks after its object store: by itself, and when asked."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from hatchvm.base import tasks
from hatchvm.base.errors import Conflict, Corrupt, NotFound, Unavailable
from hatchvm.domain.lifecycle import State
from hatchvm.domain.snapshot import Snapshot, SnapshotStatus
from hatchvm.domain.stored import Amount, Kind
from hatchvm.domain.vm import VM, NewVM
from hatchvm.ports.node import Sizes
from hatchvm.telemetry import logs, metrics
from hatchvm.testing.vmm import no_hook
from hatchvm.testing.world import World

HOUR_S = 3600.0


@pytest.fixture(autouse=True)
def uncached_loggers() -> None:
    structlog.configure(cache_logger_on_first_use=False)


async def deleted_snapshot(world: World) -> VM:
    """A running VM whose first snapshot is deleted and whose second is stored."""
    vm = await world.vm()
    first = await world.vms.snapshot(vm.id)
    await world.request(vm)
    await world.vms.snapshot(vm.id)
    await world.request(vm)
    await world.house.snapshots.delete(first.id)
    return vm


def files(world: World, kind: str) -> list[Path]:
    return [path for path in (world.paths.objects / kind).rglob("*") if path.is_file() and path.name != "clock"]


async def until_gone(world: World, kind: str) -> Amount:
    """Collect until nothing of that kind is left; what that removed in all."""
    objects = size = 0
    async with asyncio.timeout(60):
        while files(world, kind):
            done = await world.house.storage.collect(0)
            objects, size = objects + done.deleted.objects, size + done.deleted.bytes
    return Amount(objects, size)


async def test_what_is_collected_is_logged_and_counted(world: World) -> None:
    vm = await deleted_snapshot(world)
    counted = metrics.COLLECTED_OBJECTS._value.get(), metrics.COLLECTED_BYTES._value.get()
    with capture_logs() as events:
        assert (await world.house.storage.collect(None)).deleted == Amount()
        removed = await until_gone(world, "trash")
    mine = [event for event in events if event["event"] == logs.COLLECTED]
    assert sum(event["deleted"] for event in mine) == removed.objects > 0
    assert sum(event["deleted_bytes"] for event in mine) == removed.bytes > 0
    assert metrics.COLLECTED_OBJECTS._value.get() == counted[0] + removed.objects
    assert metrics.COLLECTED_BYTES._value.get() == counted[1] + removed.bytes
    await world.vms.snapshot(vm.id)
    await world.vms.restore(vm.id, None)
    assert (await world.house.storage.audit()).problems == []


async def test_a_short_grace_period_is_refused_while_a_snapshot_is_stored(world: World) -> None:
    vm = await world.vm()
    refused = []

    async def collect(at: str) -> None:
        if at in ("put", "put done"):
            world.step.interfere = no_hook
            for grace_s in (0.0, 6 * HOUR_S - 1):
                with pytest.raises(Conflict, match="a snapshot is being stored or restored"):
                    await world.house.storage.collect(grace_s)
            refused.append(await world.house.storage.collect(6 * HOUR_S))
            await world.house.storage.collect(None)

    world.step.interfere = collect
    await world.vms.snapshot(vm.id)
    assert len(refused) == 1
    await world.house.storage.collect(0)
    await world.vms.restore(vm.id, None)


async def test_a_short_grace_period_is_refused_while_a_cancelled_upload_commits(world: World) -> None:
    """Its wake has begun, and waits for the outcome of the commit."""
    vm = await world.vm()
    reached, go_on, refused = asyncio.Event(), asyncio.Event(), []

    async def hold(at: str) -> None:
        if at == "put" and files(world, "packs"):
            world.step.interfere = no_hook
            reached.set()
            await go_on.wait()

    world.step.interfere = hold
    suspend = tasks.spawn(world.vms.snapshot(vm.id), name="suspend")
    await reached.wait()
    wake = tasks.spawn(world.request(vm), name="wake")
    while world.owner(vm).upload is not None:
        await asyncio.sleep(0)
    with pytest.raises(Conflict) as caught:
        await world.house.storage.collect(0)
    refused.append(caught.value)
    go_on.set()
    assert await wake == 1
    await suspend
    await world.house.storage.collect(0)
    assert (await world.house.storage.audit()).problems == []


async def test_a_short_grace_period_is_refused_while_a_snapshot_is_fetched(world: World) -> None:
    vm = await world.vm()
    taken = await world.vms.snapshot(vm.id)
    await world.request(vm)
    refused = []

    async def collect(at: str) -> None:
        if at == "get":
            world.step.interfere = no_hook
            with pytest.raises(Conflict):
                await world.house.storage.collect(0)
            refused.append(at)

    world.step.interfere = collect
    copy = await world.vm(snapshot_id=taken.id)
    assert refused
    await world.house.storage.collect(0)
    assert await world.request(copy) == 1


async def test_the_daemon_collects_by_itself(tmp_path: Path) -> None:
    """First some minutes after its start, then every quarter of the grace period; a failure is tried again."""
    async with World.running(tmp_path, snapshot_grace_s=2 * HOUR_S) as world:
        await deleted_snapshot(world)
        looks = 0

        async def fail_the_second(at: str) -> None:
            nonlocal looks
            if at == "put":
                looks += 1
                if looks == 2:
                    raise Unavailable("the store is down")

        async def settled() -> None:
            """It sleeps, or has begun to look."""
            for _ in range(20):
                await asyncio.sleep(0)

        async def pass_time(seconds: float, *, ended: int) -> None:
            await settled()
            world.clock.advance(seconds)
            await settled()
            async with asyncio.timeout(60):
                while len(events) < ended:
                    await asyncio.sleep(0)
            assert looks == len(events) == ended

        world.step.interfere = fail_the_second
        with capture_logs() as events:
            duty = tasks.spawn(world.house.storage.run(), name="collect")
            await pass_time(170, ended=0)
            await pass_time(11, ended=1)
            await pass_time(0.49 * HOUR_S, ended=1)
            await pass_time(0.02 * HOUR_S, ended=2)
            await pass_time(0.51 * HOUR_S, ended=3)
            await tasks.cancel_and_wait(duty)
        assert [event["event"] for event in events] == [logs.COLLECTED, logs.COLLECT_FAILED, logs.COLLECTED]
        assert events[1]["error"] == "the store is down"


async def test_without_a_store_there_is_nothing_to_do(tmp_path: Path) -> None:
    async with World.running(tmp_path, snapshots_configured=False) as world:
        await world.house.storage.run()


async def test_an_unreadable_manifest_stops_the_collection_and_shows_in_the_audit(world: World) -> None:
    vm = await world.asleep()
    (row,) = await world.snapshots(vm)
    (manifest,) = files(world, "snapshots")
    manifest.write_bytes(manifest.read_bytes()[:-1])
    with pytest.raises(Corrupt, match=f"the manifest of snapshot {row.id} is damaged: delete that snapshot"):
        await world.house.storage.collect(None)
    assert [problem.kind for problem in (await world.house.storage.audit()).problems] == [Kind.DAMAGED]
    with pytest.raises(Corrupt, match="manifest is damaged"):
        await world.house.snapshots.verify(row.id)
    await world.request(vm)
    await world.house.snapshots.delete(row.id)
    for trashed in files(world, "trash"):
        os.utime(trashed, (0, 0))  # a damaged one stops collections while it is young: not of this very moment
    await until_gone(world, "packs")


async def test_verify(world: World) -> None:
    vm = await world.asleep()
    (row,) = await world.snapshots(vm)
    stored = sum(path.stat().st_size for kind in ("snapshots", "packs") for path in files(world, kind))
    read = await world.house.snapshots.verify(row.id)
    assert stored // 2 < read <= stored
    (pack,) = files(world, "packs")
    whole = pack.read_bytes()
    pack.write_bytes(whole[:20] + bytes([whole[20] ^ 1]) + whole[21:])
    with pytest.raises(Corrupt, match=f"the snapshot is damaged: .*{pack.name}"):
        await world.house.snapshots.verify(row.id)
    pack.unlink()
    with pytest.raises(Corrupt, match=rf"{pack.name}.* is missing"):
        await world.house.snapshots.verify(row.id)
    assert [problem.kind for problem in (await world.house.storage.audit()).problems] == [Kind.MISSING]
    files(world, "snapshots")[0].unlink()
    with pytest.raises(Corrupt, match=f"the snapshot is damaged: snapshot {row.id} is not in the object store"):
        await world.house.snapshots.verify(row.id)
    assert [problem.kind for problem in (await world.house.storage.audit()).problems] == [Kind.NO_MANIFEST]


async def test_a_snapshot_that_is_deleted_while_it_is_verified_is_not_damaged(world: World) -> None:
    vm = await deleted_snapshot(world)
    (row,) = await world.snapshots(vm)

    async def delete(at: str) -> None:
        if at == "get":
            world.step.interfere = no_hook
            await world.house.snapshots.delete(row.id)

    world.step.interfere = delete
    with pytest.raises(NotFound, match="snapshot not found"):
        await world.house.snapshots.verify(row.id)


async def test_what_is_deleted_or_stored_during_an_audit_is_no_problem(world: World) -> None:
    vm = await deleted_snapshot(world)
    (row,) = await world.snapshots(vm)
    acts = [lambda: world.house.snapshots.delete(row.id), lambda: world.vms.snapshot(vm.id)]
    for act in acts:

        async def meanwhile(at: str, act: Callable[[], Awaitable[object]] = act) -> None:
            if at == "list":
                world.step.interfere = no_hook
                await act()

        world.step.interfere = meanwhile
        assert (await world.house.storage.audit()).problems == []
    assert [one.id for one in await world.snapshots(vm)] != [row.id]


async def test_what_is_not_stored_yet_cannot_be_verified(world: World) -> None:
    vm = await world.vm()

    world.step.fail_at("put", Unavailable("the store is down"))
    with pytest.raises(Unavailable):
        await world.vms.snapshot(vm.id)
    (row,) = await world.snapshots(vm)
    with pytest.raises(Conflict, match="not stored yet"):
        await world.house.snapshots.verify(row.id)


async def rows(world: World, vm: VM) -> list[Snapshot]:
    """With those that are being deleted."""
    async with world.ctx.store.begin() as tx:
        return list(await tx.snapshots.list_for_vm(vm.id))


@pytest.mark.parametrize("interrupted", ["delete", "restart"])
async def test_a_delete_that_fails_half_way_is_finished(tmp_path: Path, interrupted: str) -> None:
    async with World.running(tmp_path) as world:
        vm = await world.asleep()
        (row,) = await world.snapshots(vm)
        await world.request(vm)

        world.step.fail_at("delete", Unavailable("the store is down"))
        with pytest.raises(Unavailable):
            await world.house.snapshots.delete(row.id)
        world.step.interfere = no_hook
        assert await world.snapshots(vm) == []
        assert [one.status for one in await rows(world, vm)] == [SnapshotStatus.DELETING]
        with pytest.raises(Conflict):
            await world.vms.create(NewVM(snapshot_id=row.id))
        if interrupted == "delete":
            await world.house.snapshots.delete(row.id)
        else:
            other = await World(tmp_path).start()
            async with asyncio.timeout(60):
                while await rows(other, vm):
                    await asyncio.sleep(0)
            await other.stop()
        assert await rows(world, vm) == []
        assert files(world, "snapshots") == []


async def test_retention_finishes_what_was_being_deleted(world: World) -> None:
    vm = await world.asleep()
    (row,) = await world.snapshots(vm)
    await world.request(vm)

    world.step.fail_at("delete", Unavailable("the store is down"))
    with pytest.raises(Unavailable):
        await world.house.snapshots.delete(row.id)
    world.step.interfere = no_hook
    newest = await world.vms.snapshot(vm.id)
    upload = world.owner(vm).upload
    assert upload is not None
    await asyncio.wait([upload])
    assert [one.id for one in await world.snapshots(vm)] == [newest.id]


async def test_a_deleted_vm_leaves_room_behind(world: World) -> None:
    vm = await world.asleep()
    await world.vms.delete(vm.id)
    assert files(world, "snapshots") == []
    assert files(world, "packs") != []
    removed = await until_gone(world, "packs")
    assert removed.objects >= 2
    await until_gone(world, "trash")


async def test_a_commit_without_an_answer_leaves_nothing_behind_once_the_store_is_back(tmp_path: Path) -> None:
    """The snapshot's row outlives its manifest, whatever fails and however often the daemon starts."""
    async with World.running(tmp_path) as world:
        vm, puts = await world.vm(), 0

        async def lose_the_answer(at: str) -> None:
            nonlocal puts
            puts += at == "put done"
            if puts == 2:
                raise Unavailable("the store is down")

        world.step.interfere = lose_the_answer
        with pytest.raises(Unavailable):
            await world.vms.snapshot(vm.id)
        assert len(files(world, "snapshots")) == 1, "the manifest was the second"

        world.step.fail_at("get", Unavailable("the store is down"))
        await world.request(vm)
        assert await world.snapshots(vm) == []
        [row] = await rows(world, vm)
        assert row.status is SnapshotStatus.DELETING
        world.step.interfere = no_hook
        other = await World(tmp_path).start()
        async with asyncio.timeout(10):
            while await rows(other, vm):
                await asyncio.sleep(0)
        await other.stop()
        assert files(world, "snapshots") == []
        assert (await world.house.storage.audit()).problems == []


async def test_a_manifest_that_cannot_be_read_back_does_not_end_the_upload(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm, puts = await world.vm(), 0
    committed = world.ctx.node.committed

    async def lose_the_answer(at: str) -> None:
        nonlocal puts
        puts += at == "put done"
        if puts == 2:
            raise Unavailable("the store is down")

    async def damaged(snapshot: Snapshot) -> Sizes | None:
        raise Corrupt("the snapshot is damaged")

    world.step.interfere = lose_the_answer
    monkeypatch.setattr(world.ctx.node, "committed", damaged)
    with pytest.raises(Unavailable):
        await world.vms.snapshot(vm.id)
    world.step.interfere = no_hook
    world.clock.advance(1)
    while (await rows(world, vm))[0].error != "the snapshot is damaged":
        await asyncio.sleep(0)
    monkeypatch.setattr(world.ctx.node, "committed", committed)
    world.clock.advance(60)
    again = world.owner(vm).upload
    assert again is not None
    await asyncio.wait([again])
    assert [row.status for row in await rows(world, vm)] == [SnapshotStatus.COMMITTED]


async def test_nothing_is_collected_while_a_stored_snapshot_is_missing(world: World) -> None:
    vm, other = await deleted_snapshot(world), await world.asleep()
    [kept] = files(world, "snapshots/" + other.id)
    before = files(world, "packs")
    content = kept.read_bytes()
    kept.unlink()
    [row] = await world.snapshots(other)
    with pytest.raises(Corrupt, match=f"^nothing was removed, because the manifest of snapshot {row.id} is missing"):
        await world.house.storage.collect(0)
    assert files(world, "packs") == before
    kept.write_bytes(content)
    await until_gone(world, "trash")
    assert world.state(vm) is State.RUNNING


async def test_of_a_vm_that_is_being_deleted_no_snapshot_is_missing(world: World) -> None:
    vm = await world.asleep()
    [row] = await world.snapshots(vm)

    async def fail(at: str) -> None:
        if at == "delete done":
            raise Unavailable("the store is down")

    world.step.interfere = fail
    with pytest.raises(Unavailable):
        await world.vms.delete(vm.id)
    world.step.interfere = no_hook
    assert [one.status for one in await rows(world, vm)] == [SnapshotStatus.COMMITTED]
    assert files(world, "snapshots") == []
    assert (await world.house.storage.audit()).problems == []
    await until_gone(world, "trash")
    await world.vms.delete(vm.id)
    with pytest.raises(NotFound):
        await world.house.snapshots.get(row.id)
