"""Only what changed is read: a snapshot made so is the one that a look at everything makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hatchvm.snapshots.layout import SnapshotKeys
from hatchvm.snapshots.local import Source
from hatchvm.snapshots.manifest import Manifest
from hatchvm.snapshots.seal import Ring
from hatchvm.snapshots.since import Since
from hatchvm.testing.clock import SteeredClock
from hatchvm.testing.objects import MemoryStore
from hatchvm.testing.sleeper import BLOCK, FRAME, Sleeper, piece

BLOCKS: Final = 150
#: The guest's pages hold one of these. Few, so that equal ones are frequent; 0 is zeros.
KINDS: Final = [bytes(BLOCK), *(piece(BLOCK, f"kind {kind}") for kind in range(1, 30))]

#: From which page on, how many of them, the first one's kind; the next one has the next kind.
Write = tuple[int, int, int]
writes = st.lists(
    st.tuples(st.integers(0, BLOCKS - 1), st.sampled_from([1, 1, 2, 5, BLOCKS]), st.integers(0, len(KINDS) - 1)),
    max_size=8,
)
#: Of a cycle: what the guest writes, which older snapshot is remembered, which are deleted before it is stored, and
#: pages that are said to have changed though they did not.
cycles = st.lists(
    st.tuples(writes, st.integers(0, 9), st.sets(st.integers(0, 9)), st.lists(st.integers(0, BLOCKS + 5))),
    min_size=1,
    max_size=6,
)


class Reads:
    """Counts the bytes of the memory that are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        real = Source.read_into

        def read_into(source: Source, buffer: memoryview, offset: int) -> None:
            if source.name == "memory":
                self.bytes += len(buffer)
            real(source, buffer, offset)

        monkeypatch.setattr(Source, "read_into", read_into)


def since(keys: SnapshotKeys, pages: list[int]) -> Since:
    return Since(keys, np.array(pages, np.uint32))


def shape(manifest: Manifest, old: set[str]) -> list[object]:
    """What a manifest says of the memory: where old blocks lie, which blocks are zeros, which of the new are equal."""
    slots = manifest.streams[0].slots
    frames, places = np.divmod(slots.astype(np.int64) - 1, manifest.frame_slots)
    firsts: dict[int, int] = {}
    told: list[object] = []
    for block, (slot, frame, place) in enumerate(zip(slots.tolist(), frames.tolist(), places.tolist(), strict=True)):
        row = manifest.frames[frame]
        pack = manifest.packs[row["pack"]].id
        lies = (pack, int(row["offset"]), place) if pack in old else firsts.setdefault(slot, block)
        told.append(lies if slot else None)
    return told


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(first=writes, chain=cycles, block=st.sampled_from([BLOCK, 2 * BLOCK]))
async def test_a_chain_of_cycles(
    first: list[Write], chain: list[tuple[list[Write], int, set[int], list[int]]], block: int
) -> None:
    clock = SteeredClock()
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("hatchvm.snapshots.writer.PACK_FRAMES", 1)
        patch.setattr("hatchvm.snapshots.layout.MAX_BLOCKS", 1000 if block == BLOCK else 100)
        store = MemoryStore(clock)
        vm = Sleeper(store, Path(folder), clock)
        memory = [0] * BLOCKS
        stored: dict[int, list[int]] = {}
        deleted: set[int] = set()

        async def snapshot(number: int, base: Since | None) -> None:
            vm.holds(memory=b"".join(KINDS[kind] for kind in memory), state=b"%d" % number)
            bases = [vm.keys(one) for one in sorted(stored, reverse=True) if one not in deleted]
            old = {key.rpartition("/")[2] for key in store.objects if key.startswith("packs/")}
            looked = vm.engine_over(MemoryStore(clock, objects=dict(store.objects)))
            whole = await vm.write(number, bases=bases, engine=looked)
            manifest = await vm.write(number, bases=bases, since=base)
            assert manifest.block_bytes == block
            assert await vm.restored(number) == vm.content()
            assert manifest.added_bytes == whole.added_bytes
            assert len(manifest.frames) == len(whole.frames)
            assert shape(manifest, old) == shape(whole, old)
            stored[number] = list(memory)

        def write(written: list[Write]) -> None:
            for begin, count, kind in written:
                for page in range(begin, min(begin + count, BLOCKS)):
                    memory[page] = (kind + page - begin) % len(KINDS)

        write(first)
        await snapshot(1, None)
        for number, (written, which, gone, more) in enumerate(chain, 2):
            write(written)
            since_number = 1 + which % len(stored)
            changed = [page for page in range(BLOCKS) if memory[page] != stored[since_number][page]]
            for one in {1 + one % len(stored) for one in gone} - deleted:
                await vm.engine.delete(vm.keys(one))
                deleted.add(one)
            await snapshot(number, since(vm.keys(since_number), sorted({*changed, *more})))


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore(SteeredClock())


@pytest.fixture
async def vm(store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sleeper:
    """Its snapshot 1 is stored; then it writes pages 3 and 150."""
    monkeypatch.setattr("hatchvm.snapshots.writer.PACK_FRAMES", 2)
    vm = Sleeper(store, tmp_path / "one", store.clock)
    before = piece(FRAME, "image") + bytes(FRAME) + piece(3 * FRAME, "more")
    vm.holds(memory=before, state=b"one", disk=piece(100, "text"))
    await vm.write(1)
    now = bytearray(before)
    now[3 * BLOCK : 4 * BLOCK] = piece(BLOCK, "three")
    now[150 * BLOCK : 151 * BLOCK] = bytes(BLOCK)
    vm.holds(memory=bytes(now), state=b"two", disk=piece(100, "text"))
    return vm


async def test_only_what_changed_is_read(vm: Sleeper, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch)
    second = await vm.write(2, bases=[vm.keys(1)], since=since(vm.keys(1), [3, 150]))
    assert reads.bytes == 3 * BLOCK  # page 3 once more, to be stored
    assert second.added_bytes < 4 * BLOCK
    assert await vm.restored(2) == vm.content()


async def test_what_did_not_change_is_believed_not_read(vm: Sleeper) -> None:
    """So whoever keeps count of the pages must not lose one."""
    await vm.write(2, bases=[vm.keys(1)], since=since(vm.keys(1), [3]))
    restored = (await vm.restored(2))["memory"]
    assert restored[3 * BLOCK : 4 * BLOCK] == piece(BLOCK, "three")
    assert restored[150 * BLOCK : 151 * BLOCK] != bytes(BLOCK)


async def test_frames_that_are_not_needed_any_more_are_left_out(vm: Sleeper) -> None:
    vm.holds(memory=bytes(2 * FRAME) + vm.content()["memory"][2 * FRAME :], state=b"two")
    second = await vm.write(2, bases=[vm.keys(1)], since=since(vm.keys(1), [*range(2 * FRAME // BLOCK), 150]))
    assert len(second.frames) == 4
    assert await vm.restored(2) == vm.content()


async def test_it_need_not_be_among_the_bases(vm: Sleeper, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch)
    await vm.write(2, since=since(vm.keys(1), [3, 150]))
    assert reads.bytes == 3 * BLOCK
    await vm.engine.delete(vm.keys(1))
    assert await vm.restored(2) == vm.content()


async def test_another_vms_snapshot_will_do(vm: Sleeper, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = vm.sibling("two", "vm-ffffffffffff")
    copy.holds(**vm.content())
    reads = Reads(monkeypatch)
    await copy.write(1, since=since(vm.keys(1), [3, 150]))
    assert reads.bytes == 3 * BLOCK
    assert await copy.restored(1) == copy.content()


@pytest.mark.parametrize("what", ["deleted", "damaged", "another size", "another block size", "another image"])
async def test_what_does_not_fit_is_as_if_it_was_not_said(
    vm: Sleeper, store: MemoryStore, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    said = since(vm.keys(1), [3, 150])
    if what == "deleted":
        await vm.engine.delete(vm.keys(1))
    elif what == "damaged":
        data, at = store.objects[vm.keys(1).manifest]
        store.objects[vm.keys(1).manifest] = data[:-1], at
    elif what == "another size":
        vm.holds(memory=vm.content()["memory"][:-BLOCK], state=b"two")
    elif what == "another block size":
        with monkeypatch.context() as patch:
            patch.setattr("hatchvm.snapshots.layout.MAX_BLOCKS", 200)
            await vm.write(3)
        said = since(vm.keys(3), [])
    else:
        vm.stamp = replace(vm.stamp, image_digest="another")
    reads = Reads(monkeypatch)
    await vm.write(2, bases=[vm.keys(1)], since=said)
    assert reads.bytes >= 4 * FRAME
    assert await vm.restored(2) == vm.content()


async def test_blocks_of_a_pack_that_is_lost_are_read_and_stored_anew(
    vm: Sleeper, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = await vm.engine.open(vm.keys(1))
    del store.objects[f"packs/{first.domain}/{first.packs[0].id}"]
    reads = Reads(monkeypatch)
    await vm.write(2, bases=[vm.keys(1)], since=since(vm.keys(1), [3, 150]))
    assert reads.bytes == 2 * 2 * FRAME - BLOCK  # twice, for they are stored; page 150 is zeros
    assert await vm.restored(2) == vm.content()


async def test_under_a_new_key_everything_is_read(
    vm: Sleeper, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rotated = Sleeper(store, vm.root, store.clock, Ring([bytes(32)]))
    reads = Reads(monkeypatch)
    second = await rotated.write(2, bases=[vm.keys(1)], since=since(vm.keys(1), [3, 150]))
    assert reads.bytes >= 2 * (4 * FRAME - BLOCK)
    assert {pack.key_id for pack in second.packs} == {Ring([bytes(32)]).current}
    assert await rotated.restored(2) == vm.content()
