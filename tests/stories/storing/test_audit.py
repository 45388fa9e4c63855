"""An audit says what is stored, what is wrong with it and what can go, and changes nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hatchvm.domain.stored import FATAL, Amount, Audit, Kind, Sealed
from hatchvm.snapshots.seal import Ring, key_id
from hatchvm.snapshots.shelf import CLOCK
from hatchvm.testing.clock import SteeredClock
from hatchvm.testing.objects import MemoryStore
from hatchvm.testing.storeroom import GRACE, Storeroom, snapshot

FIRST, SECOND, OTHER, DELETED = snapshot(1, 1), snapshot(1, 2), snapshot(2, 3), snapshot(4, 4)
ROWS = {keys.snapshot_id for keys in (FIRST, SECOND, OTHER)}


@pytest.fixture
def clock() -> SteeredClock:
    return SteeredClock()


@pytest.fixture
def store(clock: SteeredClock) -> MemoryStore:
    return MemoryStore(clock)


@pytest.fixture
async def room(store: MemoryStore, tmp_path: Path, clock: SteeredClock) -> Storeroom:
    """Two snapshots of one VM that share data, one of another image, a deleted one, and the time of the store."""
    room = Storeroom(store, tmp_path, clock)
    await room.write(FIRST)
    await room.write(SECOND, [FIRST])
    await room.write(OTHER)
    await room.write(DELETED)
    await room.engine.delete(DELETED)
    await room.collect()
    return room


def amount(store: MemoryStore, keys: set[str]) -> Amount:
    return Amount(len(keys), sum(len(store.objects[key][0]) for key in keys))


def under(store: MemoryStore, prefix: str) -> set[str]:
    return {key for key in store.objects if key.startswith(prefix) and key != CLOCK}


async def packs_of(room: Storeroom, *snapshots: object) -> set[str]:
    found = set()
    for keys in snapshots:
        manifest, _ = await room.engine.open(keys)  # type: ignore[arg-type]
        found |= {f"packs/{manifest.domain}/{pack.id}" for pack in manifest.packs}
    return found


def kinds(found: Audit) -> list[tuple[Kind, str | None]]:
    return [(problem.kind, problem.snapshot_id) for problem in found.problems]


async def test_what_is_stored_adds_up(room: Storeroom, store: MemoryStore) -> None:
    before = dict(store.objects)
    found = await room.engine.audit(ROWS)
    assert store.objects == before
    live = await packs_of(room, FIRST, SECOND, OTHER)
    deleted = under(store, "packs/") - live
    assert found.problems == []
    assert found.manifests == amount(store, under(store, "snapshots/"))
    assert found.packs == amount(store, under(store, "packs/"))
    assert found.shared == amount(store, await packs_of(room, FIRST) & await packs_of(room, SECOND)) != Amount()
    assert found.trash == amount(store, {DELETED.trash} | deleted)
    assert found.orphaned == found.due == found.unknown == Amount()
    assert found.stored_bytes == sum(len(data) for data, _ in store.objects.values())
    assert found.keys == [Sealed(key_id=None, bytes=found.stored_bytes, current=True, held=True)]


async def test_what_is_deleted_but_needed_by_others_is_not_in_the_trash(room: Storeroom, store: MemoryStore) -> None:
    alone = await packs_of(room, FIRST) - await packs_of(room, SECOND)
    before = (await room.engine.audit(ROWS)).trash
    await room.engine.delete(FIRST)
    after = (await room.engine.audit(ROWS - {FIRST.snapshot_id})).trash
    mine = amount(store, alone | {FIRST.trash})
    assert (after.objects, after.bytes) == (before.objects + mine.objects, before.bytes + mine.bytes)


async def test_what_nothing_refers_to(room: Storeroom, store: MemoryStore, clock: SteeredClock) -> None:
    old = await packs_of(room, OTHER)
    await store.delete(OTHER.manifest)
    clock.advance(GRACE.total_seconds() + 1)
    young = f"packs/{'0' * 32}/{'1' * 32}"
    await store.put(young, b"begun just now")
    found = await room.engine.audit(ROWS - {OTHER.snapshot_id})
    assert found.orphaned == amount(store, old | {young})
    assert found.due == amount(store, old)
    assert found.problems == []


async def test_rows_and_manifests_that_miss_one_another(room: Storeroom, store: MemoryStore) -> None:
    await store.delete(OTHER.manifest)
    found = await room.engine.audit(ROWS - {FIRST.snapshot_id})
    assert kinds(found) == [(Kind.NO_ROW, FIRST.snapshot_id), (Kind.NO_MANIFEST, OTHER.snapshot_id)]
    assert found.problems[0].key == FIRST.manifest


@pytest.mark.parametrize("how", ["gone", "shorter", "longer"])
async def test_packs_that_are_missing_or_have_another_size(room: Storeroom, store: MemoryStore, how: str) -> None:
    shared = sorted(await packs_of(room, FIRST) & await packs_of(room, SECOND))[0]
    data = await store.get(shared)
    await store.delete(shared)
    if how != "gone":
        await store.put(shared, data[:-1] if how == "shorter" else data + b"x")
    found = await room.engine.audit(ROWS)
    assert sorted(kinds(found)) == [(Kind.MISSING, FIRST.snapshot_id), (Kind.MISSING, SECOND.snapshot_id)]
    assert all(shared in problem.message for problem in found.problems)
    assert all(problem.kind in FATAL for problem in found.problems)


async def test_a_damaged_manifest_is_a_problem_and_what_it_needs_is_not_known(
    room: Storeroom, store: MemoryStore
) -> None:
    mine = await packs_of(room, OTHER)
    await store.put(OTHER.manifest, (await store.get(OTHER.manifest))[:-1])
    found = await room.engine.audit(ROWS)
    assert kinds(found) == [(Kind.DAMAGED, OTHER.snapshot_id)]
    assert found.orphaned == amount(store, mine)


async def test_objects_that_are_not_ours(room: Storeroom, store: MemoryStore) -> None:
    foreign = {f"packs/{'0' * 32}/number-{number}" for number in range(200)} | {"snapshots/x", "trash/x"}
    for key in foreign:
        await store.put(key, b"foreign")
    await store.put("elsewhere/x", b"not looked at")
    found = await room.engine.audit(ROWS)
    assert found.unknown == amount(store, foreign)
    named = [problem.key for problem in found.problems]
    assert len(named) == 100
    assert {problem.kind for problem in found.problems} == {Kind.UNKNOWN}
    assert {"snapshots/x", "trash/x"} <= set(named) <= foreign


async def test_an_old_key_is_needed_until_nothing_is_sealed_with_it(
    store: MemoryStore, tmp_path: Path, clock: SteeredClock
) -> None:
    old, new = b"o" * 32, b"n" * 32
    before = Storeroom(store, tmp_path / "1", clock, ring=Ring([old]))
    await before.write(FIRST)
    rotated = Storeroom(store, tmp_path / "2", clock, ring=Ring([new, old]))
    await rotated.write(SECOND, [FIRST])
    names = {one: key_id(one).hex() for one in (old, new)}

    async def keys(room: Storeroom) -> dict[str | None, Sealed]:
        return {key.key_id: replace(key, key_id=None) for key in (await room.engine.audit(ROWS)).keys}

    whole = await keys(rotated)
    mine = {FIRST.manifest} | await packs_of(rotated, FIRST)
    assert whole[names[old]] == Sealed(key_id=None, bytes=amount(store, mine).bytes, current=False, held=True)
    others = {SECOND.manifest} | await packs_of(rotated, SECOND)
    assert whole[names[new]] == Sealed(key_id=None, bytes=amount(store, others).bytes, current=True, held=True)

    without = Storeroom(store, tmp_path / "3", clock, ring=Ring([new]))
    assert (await keys(without))[names[old]].held is False
    assert kinds(await without.engine.audit(ROWS - {OTHER.snapshot_id})) == [(Kind.DAMAGED, FIRST.snapshot_id)]

    await rotated.engine.delete(FIRST)
    assert (await keys(rotated))[names[old]].bytes == amount(store, mine - {FIRST.manifest} | {FIRST.trash}).bytes
    clock.advance(GRACE.total_seconds() + 1)
    await rotated.collect()
    assert names[old] not in await keys(rotated)
    assert (await keys(without)).keys() == {names[new]}


async def test_without_anything_stored(tmp_path: Path, clock: SteeredClock) -> None:
    found = await Storeroom(MemoryStore(clock), tmp_path, clock).engine.audit([])
    assert found.stored_bytes == 0
    assert found.problems == []
