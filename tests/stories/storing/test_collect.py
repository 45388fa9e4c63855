"""What a collection removes, what it keeps, and when it refuses to remove anything."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from hatchvm.base.errors import Conflict, Corrupt, HatchError, Unavailable, Unsupported
from hatchvm.domain.stored import Amount
from hatchvm.snapshots.codec import digest
from hatchvm.snapshots.manifest import HEAD
from hatchvm.snapshots.seal import Ring
from hatchvm.snapshots.shelf import CLOCK
from hatchvm.testing.clock import SteeredClock
from hatchvm.testing.objects import MemoryStore, no_hook
from hatchvm.testing.storeroom import GRACE, Storeroom, snapshot, vm_id

FIRST, SECOND, OTHER = snapshot(1, 1), snapshot(1, 2), snapshot(2, 3)


@pytest.fixture
def clock() -> SteeredClock:
    return SteeredClock()


@pytest.fixture
def store(clock: SteeredClock) -> MemoryStore:
    return MemoryStore(clock)


@pytest.fixture
def room(store: MemoryStore, tmp_path: Path, clock: SteeredClock) -> Storeroom:
    return Storeroom(store, tmp_path, clock)


def keys_in(store: MemoryStore) -> set[str]:
    """All objects but the one that tells the time."""
    return set(store.objects) - {CLOCK}


def packs_in(store: MemoryStore) -> set[str]:
    return {key for key in store.objects if key.startswith("packs/")}


async def test_what_no_snapshot_needs_goes_when_it_is_old(
    room: Storeroom, store: MemoryStore, clock: SteeredClock
) -> None:
    await room.write(FIRST)
    mine = packs_in(store)
    await room.write(OTHER)
    await room.engine.delete(FIRST)
    bytes_before = sum(len(data) for data, _ in store.objects.values())
    clock.advance(GRACE.total_seconds() - 1)
    assert (await room.collect()).deleted == Amount()
    clock.advance(2)
    done = await room.collect()
    assert packs_in(store).isdisjoint(mine)
    assert FIRST.trash not in store.objects
    assert done.deleted.objects == len(mine) + 1
    assert done.deleted.bytes == bytes_before - sum(len(data) for data, _ in store.objects.values())
    assert done.kept.objects == len(packs_in(store)) > 0
    assert done.waiting == Amount()
    await room.restore(OTHER)
    assert (await room.collect()).deleted == Amount()


async def test_a_pack_of_an_upload_under_way_is_kept_while_it_is_young(room: Storeroom, clock: SteeredClock) -> None:
    manifest = await room.write(FIRST)
    await room.store.delete(FIRST.manifest)
    clock.advance(GRACE.total_seconds() - 1)
    done = await room.collect()
    assert done.deleted == Amount()
    assert done.kept == done.waiting == Amount(len(manifest.packs), sum(pack.size for pack in manifest.packs))
    clock.advance(2)
    assert (await room.collect()).deleted == done.kept


async def test_the_trash_protects_old_packs(room: Storeroom, store: MemoryStore, clock: SteeredClock) -> None:
    await room.write(FIRST)
    clock.advance(2 * GRACE.total_seconds())
    await room.engine.delete(FIRST)
    before = keys_in(store)
    clock.advance(GRACE.total_seconds() - 1)
    done = await room.collect()
    assert keys_in(store) == before
    assert done.waiting == done.kept != Amount()
    clock.advance(2)
    await room.collect()
    assert keys_in(store) == set()


@pytest.mark.parametrize("trashed", [True, False])
async def test_exactly_as_old_as_the_grace_period_is_not_old(
    tmp_path: Path, clock: SteeredClock, trashed: bool
) -> None:
    """Ages come in whole seconds: what is stored after a collection began may seem as old as its beginning."""
    store = MemoryStore(clock, whole_seconds=True)
    room = Storeroom(store, tmp_path, clock)
    await room.write(FIRST)
    await (room.engine.delete(FIRST) if trashed else store.delete(FIRST.manifest))
    before = keys_in(store)
    clock.advance(GRACE.total_seconds())
    assert (await room.collect()).deleted == Amount()
    assert keys_in(store) == before
    clock.advance(1)
    await room.collect()
    assert keys_in(store) == set()


async def test_a_shared_pack_lives_as_long_as_one_of_its_snapshots(
    room: Storeroom, store: MemoryStore, clock: SteeredClock
) -> None:
    await room.write(FIRST)
    third = snapshot(3, 4)
    await room.write(third, [FIRST])
    assert (await room.engine.open(third))[0].packs[0] in (await room.engine.open(FIRST))[0].packs
    await room.engine.delete_vm(FIRST.vm_id)
    clock.advance(GRACE.total_seconds() + 1)
    await room.collect()
    await room.restore(third)
    await room.engine.delete(third)
    clock.advance(GRACE.total_seconds() + 1)
    await room.collect()
    assert keys_in(store) == set()


async def test_old_trash_of_a_snapshot_that_is_still_there_stays(
    room: Storeroom, store: MemoryStore, clock: SteeredClock
) -> None:
    """A delete that was cut off is repeated one day; its trash must not be removed just then."""
    await room.write(FIRST)
    await store.put(FIRST.trash, await store.get(FIRST.manifest))
    clock.advance(2 * GRACE.total_seconds())
    await room.collect()
    assert FIRST.trash in store.objects
    await room.restore(FIRST)


async def test_what_is_not_ours_is_never_touched(room: Storeroom, store: MemoryStore, clock: SteeredClock) -> None:
    foreign = {
        "photos/cat.jpg",
        "packs",
        "packs/README",
        f"packs/{'0' * 32}/not-a-pack",
        f"packs/{'0' * 32}/{'1' * 32}.tmp",
        f"packs/{'0' * 31}/{'1' * 32}",
        f"snapshots/{vm_id(1)}/notes",
        f"snapshots/{FIRST.vm_id}/{FIRST.snapshot_id}/memory.0000.pack",
        "trash/x",
        f"trash/{vm_id(1)}/snap-1",
        "trashcan/x",
    }
    for key in foreign:
        await store.put(key, b"foreign")
    clock.advance(10 * GRACE.total_seconds())
    await room.collect()
    assert keys_in(store) == foreign


def cut(data: bytes) -> bytes:
    return data[:-1]


def flip(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


def empty(data: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("damage", [cut, flip, empty])
async def test_a_manifest_that_cannot_be_read_stops_it_all(
    room: Storeroom, store: MemoryStore, clock: SteeredClock, damage: Callable[[bytes], bytes]
) -> None:
    await room.write(FIRST)
    await room.write(OTHER)
    await room.engine.delete(FIRST)
    await store.put(OTHER.manifest, damage(await store.get(OTHER.manifest)))
    clock.advance(2 * GRACE.total_seconds())
    before = keys_in(store)
    with pytest.raises(Corrupt, match=f"nothing was removed, because the manifest of snapshot {OTHER.snapshot_id} is"):
        await room.collect()
    assert keys_in(store) == before
    await room.engine.delete(OTHER)
    with pytest.raises(Corrupt, match=f"{OTHER.snapshot_id} is damaged: it was deleted and is forgotten in 6h0m0s"):
        await room.collect()
    assert keys_in(store) - {OTHER.trash} == before - {OTHER.manifest}
    clock.advance(GRACE.total_seconds() + 1)
    await room.collect()
    assert keys_in(store) == set()


async def test_a_newer_format_stops_it_all(room: Storeroom, store: MemoryStore, clock: SteeredClock) -> None:
    await room.write(FIRST)
    data = await store.get(FIRST.manifest)
    head = list(HEAD.unpack_from(data))
    head[1], head[4] = 3, bytes(32)
    head[4] = digest(HEAD.pack(*head) + data[HEAD.size :])
    await store.put(FIRST.manifest, HEAD.pack(*head) + data[HEAD.size :])
    clock.advance(2 * GRACE.total_seconds())
    with pytest.raises(Unsupported, match=r"cannot be read: .*format 3.*; put that right, or delete that snapshot"):
        await room.collect()


async def test_a_lost_key_stops_it_all_until_it_is_back(
    store: MemoryStore, tmp_path: Path, clock: SteeredClock
) -> None:
    old, new = b"o" * 32, b"n" * 32
    sealed = Storeroom(store, tmp_path / "1", clock, ring=Ring([old]))
    await sealed.write(FIRST)
    await sealed.write(OTHER)
    await sealed.engine.delete(OTHER)
    clock.advance(2 * GRACE.total_seconds())
    without = Storeroom(store, tmp_path / "2", clock, ring=Ring([new]))
    before = keys_in(store)
    with pytest.raises(Unsupported, match=r"encrypted with key .* not in HATCH_SNAPSHOT_KEY_FILE; put that right"):
        await without.collect()
    assert keys_in(store) == before
    rotated = Storeroom(store, tmp_path / "3", clock, ring=Ring([new, old]))
    assert (await rotated.collect()).deleted.objects > 1
    await rotated.restore(FIRST)


async def test_a_damaged_copy_in_the_trash_of_a_snapshot_that_is_there_does_not_matter(
    room: Storeroom, store: MemoryStore
) -> None:
    await room.write(FIRST)
    await store.put(FIRST.trash, b"cut off")
    await room.collect()


async def test_a_snapshot_deleted_while_we_look_is_found_in_the_trash(
    room: Storeroom, store: MemoryStore, clock: SteeredClock
) -> None:
    """Damaged, it was neither read before it went nor can it be read now."""
    await room.write(FIRST)
    await store.put(FIRST.manifest, b"damaged")
    clock.advance(2 * GRACE.total_seconds())

    async def delete(step: str, key: str) -> None:
        if step == "list done" and key == "snapshots/":
            store.hook = no_hook
            await room.engine.delete(FIRST)

    store.hook = delete
    with pytest.raises(Corrupt, match="it was deleted and is forgotten"):
        await room.collect()


async def test_a_look_that_takes_too_long_removes_nothing(
    room: Storeroom, store: MemoryStore, clock: SteeredClock
) -> None:
    await room.write(FIRST)
    await room.engine.delete(FIRST)
    clock.advance(2 * GRACE.total_seconds())
    before = keys_in(store)

    async def slow(step: str, key: str) -> None:
        if step == "list" and key == "trash/":
            clock.advance(GRACE.total_seconds() / 4 + 1)

    store.hook = slow
    with pytest.raises(Unavailable, match="took too long, nothing was removed"):
        await room.collect()
    assert keys_in(store) == before


async def test_a_short_grace_period_is_for_quiet_moments(
    room: Storeroom, store: MemoryStore, clock: SteeredClock
) -> None:
    def refuse() -> None:
        raise Conflict("an upload is under way")

    await room.write(FIRST)
    await room.engine.delete(FIRST)
    clock.advance(1)
    before = keys_in(store)
    with pytest.raises(Conflict):
        await room.engine.collect(timedelta(0), rows=room.rows, allow=refuse)
    assert keys_in(store) == before
    await room.engine.collect(GRACE, rows=room.rows, allow=refuse)
    await room.engine.collect(2 * GRACE, rows=room.rows, allow=refuse)
    assert keys_in(store) == before
    await room.collect(timedelta(0))
    assert keys_in(store) == set()


async def test_a_long_grace_period_is_kept(room: Storeroom, store: MemoryStore, clock: SteeredClock) -> None:
    await room.write(FIRST)
    await room.engine.delete(FIRST)
    before = keys_in(store)
    clock.advance(3 * GRACE.total_seconds() - 1)
    await room.collect(3 * GRACE)
    assert keys_in(store) == before


async def test_after_a_short_one_a_cut_off_upload_begins_anew(
    room: Storeroom, store: MemoryStore, clock: SteeredClock
) -> None:
    async def fail(step: str, key: str) -> None:
        if step == "put" and key == FIRST.manifest:
            raise Unavailable("the store went away")

    store.hook = fail
    with pytest.raises(Unavailable):
        await room.write(FIRST)
    cut_off = packs_in(store)
    assert cut_off
    clock.advance(1)
    await room.collect(timedelta(0))
    assert packs_in(store) == set()
    store.hook = no_hook
    await room.write(FIRST)
    await room.restore(FIRST)


async def test_the_memory_of_packs_does_not_grow(room: Storeroom, tmp_path: Path, clock: SteeredClock) -> None:
    def tails() -> set[str]:
        return {path.stem for path in (tmp_path / "packs").glob("*.tail")}

    await room.write(FIRST)
    gone = tails()
    await room.write(OTHER)
    await room.engine.delete(FIRST)
    clock.advance(GRACE.total_seconds() - 1)
    await room.collect()
    assert tails() >= gone
    clock.advance(2)
    await room.collect()
    assert tails() == {pack.id for pack in (await room.engine.open(OTHER))[0].packs}
    assert gone.isdisjoint(tails())


@pytest.mark.parametrize("error", [Unavailable("the store went away"), OSError("a bug")])
async def test_a_collection_that_fails_anywhere_is_finished_by_the_next(
    tmp_path: Path, clock: SteeredClock, error: Exception
) -> None:
    """Before and after every call of the store."""
    at = 0
    while True:
        at += 1
        store = MemoryStore(clock)
        room = Storeroom(store, tmp_path / str(at), clock)
        for keys in (FIRST, SECOND, OTHER):
            await room.write(keys, [FIRST])
        await room.engine.delete(FIRST)
        await room.engine.delete(OTHER)
        clock.advance(GRACE.total_seconds() + 1)
        calls = 0

        async def count(step: str, key: str, at: int = at) -> None:
            nonlocal calls
            calls += 1
            if calls == at:
                raise error

        store.hook = count
        try:
            await room.collect()
        except (HatchError, OSError) as raised:
            assert raised is error
        else:
            break
        store.hook = no_hook
        await room.restore(SECOND)
        await room.collect()
        assert await room.unneeded() == set()
        await room.restore(SECOND)
    assert at > 15
