"""Answers that are damaged on their way: a list that hides or changes an object must not cost a snapshot its packs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from hatchvm.base.errors import Corrupt
from hatchvm.ports.objects import ObjectInfo
from hatchvm.snapshots.layout import PACKS, SNAPSHOTS, TRASH
from hatchvm.testing.clock import SteeredClock
from hatchvm.testing.objects import MemoryStore
from hatchvm.testing.storeroom import GRACE, Storeroom, snapshot

FIRST, SECOND, OTHER, UNFINISHED = snapshot(1, 1), snapshot(1, 2), snapshot(2, 3), snapshot(3, 4)
HOUR_S = 3600.0

Lie = Callable[[ObjectInfo], ObjectInfo | None]


class LyingStore(MemoryStore):
    """Lies once in every so many lists under a prefix, about one object; and damages gets of manifests so often."""

    prefix: str = ""
    lie: Lie | None = None
    every: int = 2
    damage_every: int = 0
    lists: int = 0
    gets: int = 0

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        found = [info async for info in super().list(prefix)]
        if self.lie is not None and prefix.startswith(self.prefix):
            self.lists += 1
            if self.lists % self.every == 0 and found:
                at = self.lists // self.every % len(found)
                told = self.lie(found[at])
                found[at : at + 1] = [] if told is None else [told]
        for info in found:
            yield info

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        data = await super().get(key, start=start, length=length)
        if self.damage_every and not start:
            self.gets += 1
            if self.gets % self.damage_every == 0:
                return data[:-1] + bytes([data[-1] ^ 4])
        return data


def hidden(info: ObjectInfo) -> None:
    return None


def other_id(info: ObjectInfo) -> ObjectInfo:
    """Well-formed, and somebody else's."""
    parent, _, name = info.key.removesuffix("/manifest").rpartition("/")
    changed = name[:-1] + ("1" if name.endswith("0") else "0")
    return replace(info, key=info.key.replace(f"{parent}/{name}", f"{parent}/{changed}"))


def no_id(info: ObjectInfo) -> ObjectInfo:
    return replace(info, key=f"{info.key}x")


def older(info: ObjectInfo) -> ObjectInfo:
    return replace(info, modified_at=info.modified_at - timedelta(days=1000))


@pytest.fixture
def clock() -> SteeredClock:
    return SteeredClock()


@pytest.fixture
def store(clock: SteeredClock) -> LyingStore:
    return LyingStore(clock)


@pytest.fixture
def room(store: LyingStore, tmp_path: Path, clock: SteeredClock) -> Storeroom:
    return Storeroom(store, tmp_path, clock)


@pytest.mark.parametrize("lie", [hidden, other_id, no_id, older])
@pytest.mark.parametrize("first", [0, 1], ids=["second list", "first list"])
@pytest.mark.parametrize("prefix", [SNAPSHOTS, PACKS, TRASH])
async def test_no_lie_of_a_list_costs_a_pack(
    room: Storeroom, store: LyingStore, clock: SteeredClock, prefix: str, lie: Lie, first: int
) -> None:
    """Neither one that a snapshot needs, nor a deleted snapshot's, nor a young one that none needs yet."""
    await room.write(FIRST)
    await room.write(SECOND, [FIRST])
    await room.write(OTHER)
    clock.advance(2 * GRACE.total_seconds())
    await room.engine.delete(OTHER)
    await room.write(UNFINISHED)
    del store.objects[UNFINISHED.manifest]
    before = set(store.objects)
    store.prefix, store.lie, store.lists = prefix, lie, first
    for _ in range(10):
        await room.collect()
        clock.advance(HOUR_S / 4)
    assert store.lists >= 10, "nobody lied"
    assert {key for key in before if key not in store.objects} == set()
    store.lie = None
    for keys in (FIRST, SECOND):
        await room.restore(keys)


async def test_what_two_lists_agree_on_goes(room: Storeroom, store: LyingStore, clock: SteeredClock) -> None:
    await room.write(FIRST)
    await room.write(OTHER)
    await room.engine.delete(FIRST)
    clock.advance(2 * GRACE.total_seconds())
    doomed = await room.unneeded()
    store.lie = other_id
    for _ in range(3):
        await room.collect()
    store.lie = None
    assert doomed and not await room.unneeded()
    await room.restore(OTHER)


async def test_a_snapshot_that_is_said_to_be_stored_and_never_listed_stops_everything(
    room: Storeroom, store: LyingStore, clock: SteeredClock
) -> None:
    await room.write(FIRST)
    clock.advance(2 * GRACE.total_seconds())
    before = set(store.objects)
    store.prefix, store.lie, store.every = SNAPSHOTS, hidden, 1

    async def rows() -> list[str]:
        return [FIRST.snapshot_id]

    with pytest.raises(Corrupt, match=r"^nothing was removed, because the manifest of snapshot snap-0+1 is missing"):
        await room.engine.collect(GRACE, rows=rows, allow=lambda: None)
    assert before <= set(store.objects)


async def test_one_that_is_deleted_meanwhile_is_not_missed(
    room: Storeroom, store: LyingStore, clock: SteeredClock
) -> None:
    await room.write(FIRST)
    await room.write(SECOND, [FIRST])
    told = [{FIRST.snapshot_id, SECOND.snapshot_id}, {SECOND.snapshot_id}]
    await room.engine.delete(FIRST)
    clock.advance(2 * GRACE.total_seconds())

    async def rows() -> set[str]:
        return told.pop(0)

    await room.engine.collect(GRACE, rows=rows, allow=lambda: None)
    assert not told
    await room.restore(SECOND)


@pytest.mark.parametrize("lie", [hidden, other_id, no_id])
async def test_of_a_deleted_vm_no_manifest_stays(room: Storeroom, store: LyingStore, lie: Lie) -> None:
    for keys in (FIRST, SECOND, OTHER):
        await room.write(keys)
    store.prefix, store.lie = SNAPSHOTS, lie
    await room.engine.delete_vm(FIRST.vm_id)
    store.lie = None
    assert await room.snapshots() == [OTHER]


async def test_what_is_damaged_on_its_way_is_read_again(room: Storeroom, store: LyingStore) -> None:
    await room.write(FIRST)
    manifest, _ = await room.engine.open(FIRST)
    store.damage_every = 2
    for _ in range(4):
        await room.restore(FIRST)
        await room.engine.verify(manifest)
        await room.collect()
    await room.engine.delete(FIRST)
    store.damage_every = 0
    [trashed] = [key for key in store.objects if key == FIRST.trash]
    stored, _ = store.objects[trashed]
    store.objects[FIRST.manifest] = store.objects[trashed]
    assert (await room.engine.open(FIRST))[1] == stored
