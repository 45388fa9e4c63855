"""What is in the store already is not stored again: for the same VM, and for other VMs of its image."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from hatchvm.snapshots.codec import digest
from hatchvm.snapshots.manifest import HEAD
from hatchvm.snapshots.seal import Ring
from hatchvm.testing.clock import SteeredClock
from hatchvm.testing.objects import MemoryStore
from hatchvm.testing.sleeper import BLOCK, FRAME, Sleeper, piece

OTHER: Final = "vm-ffffffffffff"


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(SteeredClock())


@pytest.fixture
def vm(store: MemoryStore, tmp_path: Path) -> Sleeper:
    vm = Sleeper(store, tmp_path / "one", store.clock)
    vm.holds(memory=piece(4 * FRAME, "image") + piece(FRAME, "mine"), state=b"one", disk=piece(100, "text"))
    return vm


def packs_in(store: MemoryStore) -> set[str]:
    return {key for key in store.objects if key.startswith("packs/")}


async def test_a_second_snapshot_stores_what_changed(vm: Sleeper, store: MemoryStore) -> None:
    first = await vm.write(1)
    memory = bytearray(vm.content()["memory"])
    memory[10 * BLOCK : 12 * BLOCK] = piece(2 * BLOCK, "new")
    vm.holds(memory=bytes(memory), state=b"two", disk=piece(100, "text"))
    second = await vm.write(2, bases=[vm.keys(1)])
    assert second.added_bytes < 3 * BLOCK
    assert second.stored_bytes == second.added_bytes + len(store.objects[vm.keys(2).manifest][0])
    assert len(second.packs) == len(first.packs) + 1
    assert await vm.restored(2) == vm.content()


async def test_a_snapshot_that_changed_nothing_stores_a_manifest(vm: Sleeper, store: MemoryStore) -> None:
    await vm.write(1)
    before = packs_in(store)
    second = await vm.write(2, bases=[vm.keys(1)])
    assert second.added_bytes == 0
    assert packs_in(store) == before
    assert await vm.restored(2) == vm.content()


async def test_another_vm_of_the_image_shares_its_blocks(vm: Sleeper) -> None:
    first = await vm.write(1)
    other = vm.sibling("two", OTHER)
    other.holds(memory=piece(FRAME, "its own") + piece(4 * FRAME, "image"), state=b"two")
    second = await other.write(1, bases=[vm.keys(1)])
    assert {pack.id for pack in first.packs} < {pack.id for pack in second.packs}
    assert second.added_bytes < FRAME + 4 * BLOCK
    assert await other.restored(1) == other.content()
    await vm.engine.delete(vm.keys(1))
    assert await other.restored(1) == other.content()


async def test_another_image_shares_nothing(vm: Sleeper, store: MemoryStore) -> None:
    first = await vm.write(1)
    other = vm.sibling("two", OTHER, image="another")
    other.holds(**{name.removesuffix(".qcow2"): data for name, data in vm.content().items()})
    looked_at: list[str] = []

    async def watch(step: str, key: str) -> None:
        if step in ("get", "info"):
            looked_at.append(key)

    second = await other.write(1, bases=[vm.keys(1)], engine=other.engine_over(store.seen_by(watch)))
    assert not any(key.startswith("packs/") for key in looked_at)
    assert second.domain != first.domain
    assert second.added_bytes == first.added_bytes
    assert packs_in(store) == {f"packs/{one.domain}/{pack.id}" for one in (first, second) for pack in one.packs}
    assert await other.restored(1) == other.content()


async def test_no_base_shares_nothing(vm: Sleeper) -> None:
    first = await vm.write(1)
    second = await vm.write(2)
    assert {pack.id for pack in first.packs}.isdisjoint(pack.id for pack in second.packs)


async def test_what_is_remembered_here_is_not_read_again(vm: Sleeper, store: MemoryStore) -> None:
    await vm.write(1)
    reads: list[str] = []

    async def watch(step: str, key: str) -> None:
        if step == "get":
            reads.append(key)

    await vm.write(2, bases=[vm.keys(1)], engine=vm.engine_over(store.seen_by(watch)))
    assert reads == [vm.keys(1).manifest]
    stranger = vm.sibling("two", OTHER)
    stranger.holds(memory=b"m", state=b"s")
    for number in (1, 2):
        reads.clear()
        await stranger.write(number, bases=[vm.keys(1)], engine=stranger.engine_over(store.seen_by(watch)))
        assert len([key for key in reads if key.startswith("packs/")]) == (1 if number == 1 else 0)


async def test_a_memory_that_is_damaged_is_read_anew(vm: Sleeper, tmp_path: Path) -> None:
    await vm.write(1)
    for path in (tmp_path / "one/packs").glob("*.tail"):
        path.write_bytes(path.read_bytes()[:-1])
    assert (await vm.write(2, bases=[vm.keys(1)])).added_bytes == 0


@pytest.mark.parametrize("what", ["gone", "damaged", "newer"])
async def test_a_base_that_cannot_be_read_is_left_out(vm: Sleeper, store: MemoryStore, what: str) -> None:
    first = await vm.write(1)
    data, at = store.objects.pop(vm.keys(1).manifest)
    if what == "damaged":
        store.objects[vm.keys(1).manifest] = data[:-1], at
    if what == "newer":
        magic, _, key_id, salt, _, size = HEAD.unpack_from(data)
        check = digest(HEAD.pack(magic, 3, key_id, salt, bytes(32), size) + data[HEAD.size :])
        store.objects[vm.keys(1).manifest] = HEAD.pack(magic, 3, key_id, salt, check, size) + data[HEAD.size :], at
    second = await vm.write(2, bases=[vm.keys(1)])
    assert second.added_bytes == first.added_bytes
    assert await vm.restored(2) == vm.content()


@pytest.mark.parametrize("remembered", [True, False])
@pytest.mark.parametrize("what", ["gone", "truncated", "grown"])
async def test_a_pack_that_is_not_what_it_was_is_not_referred_to(
    vm: Sleeper, store: MemoryStore, monkeypatch: pytest.MonkeyPatch, what: str, remembered: bool
) -> None:
    monkeypatch.setattr("hatchvm.snapshots.writer.PACK_FRAMES", 2)
    first = await vm.write(1)
    lost = f"packs/{first.domain}/{first.packs[1].id}"
    data, at = store.objects.pop(lost)
    if what != "gone":
        store.objects[lost] = data[:-1] if what == "truncated" else data + b"\0", at
    writer = vm if remembered else vm.sibling("two", OTHER)
    writer.holds(**{name.removesuffix(".qcow2"): data for name, data in vm.content().items()})
    second = await writer.write(2, bases=[vm.keys(1)])
    assert {pack.id for pack in second.packs} & {pack.id for pack in first.packs} == {
        pack.id for pack in first.packs if pack is not first.packs[1]
    }
    assert 0 < second.added_bytes < first.added_bytes
    assert await writer.restored(2) == writer.content()


async def test_the_newest_base_comes_first(vm: Sleeper) -> None:
    await vm.write(1)
    second = await vm.write(2)  # the same blocks once more
    third = await vm.write(3, bases=[vm.keys(2), vm.keys(1)])
    assert [pack.id for pack in third.packs] == [pack.id for pack in second.packs]


async def test_bases_beyond_the_limit_are_not_looked_at(
    vm: Sleeper, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hatchvm.snapshots.known._MAX_BLOCKS", 1)
    await vm.write(1)
    vm.holds(memory=piece(FRAME, "else"), state=b"")
    await vm.write(2)
    reads: list[str] = []

    async def watch(step: str, key: str) -> None:
        if step == "get":
            reads.append(key)

    await vm.write(3, bases=[vm.keys(2), vm.keys(1)], engine=vm.engine_over(store.seen_by(watch)))
    assert reads == [vm.keys(2).manifest]


async def test_a_pack_of_two_bases_is_looked_at_once(vm: Sleeper, store: MemoryStore) -> None:
    await vm.write(1)
    await vm.write(2, bases=[vm.keys(1)])
    looked_at: list[str] = []

    async def watch(step: str, key: str) -> None:
        if key.startswith("packs/"):
            looked_at.append(key)

    await vm.write(3, bases=[vm.keys(2), vm.keys(1)], engine=vm.engine_over(store.seen_by(watch)))
    assert len(looked_at) == len(set(looked_at)) == 1


async def test_a_base_with_other_blocks_is_of_no_use(vm: Sleeper, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await vm.write(1)
    monkeypatch.setattr("hatchvm.snapshots.layout.MAX_BLOCKS", 200)
    second = await vm.write(2, bases=[vm.keys(1)])
    assert second.block_bytes == 2 * BLOCK
    assert {pack.id for pack in second.packs}.isdisjoint(pack.id for pack in first.packs)
    assert await vm.restored(2) == vm.content()


async def test_under_a_new_key_nothing_of_the_old_one_is_referred_to(vm: Sleeper, store: MemoryStore) -> None:
    old, new = bytes(32), b"\1" * 32
    vm = Sleeper(store, vm.root, store.clock, Ring([old]))
    await vm.write(1)
    rotated = Sleeper(store, vm.root, store.clock, Ring([new, old]))
    second = await rotated.write(2, bases=[vm.keys(1)])
    assert {pack.key_id for pack in second.packs} == {Ring([new]).current}
    assert await rotated.restored(1) == await rotated.restored(2) == vm.content()
    only_new = Sleeper(store, vm.root, store.clock, Ring([new]))
    assert await only_new.restored(2) == vm.content()
    third = await only_new.write(3, bases=[vm.keys(1), vm.keys(2)])
    assert third.added_bytes == 0


async def test_without_a_key_what_was_sealed_is_not_referred_to(vm: Sleeper, store: MemoryStore) -> None:
    ring = Ring([bytes(32)])
    await Sleeper(store, vm.root, store.clock, ring).write(1)
    plain = await vm.write(2, bases=[vm.keys(1)])
    assert {pack.key_id for pack in plain.packs} == {bytes(8)}
    sealed = await Sleeper(store, vm.root, store.clock, ring).write(3, bases=[vm.keys(2), vm.keys(1)])
    assert {pack.key_id for pack in sealed.packs} == {ring.current}
    assert sealed.added_bytes == 0
