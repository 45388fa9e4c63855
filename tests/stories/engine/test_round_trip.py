"""A snapshot comes back as it was stored, and the engine tells the truth about what it holds."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hatchvm.base.errors import Conflict, Corrupt, Exhausted, Invalid, NotFound, Unavailable, Unsupported
from hatchvm.objects.directory import DirectoryStore
from hatchvm.snapshots.engine import Facts, Files
from hatchvm.snapshots.layout import MAX_BLOCKS, MAX_VM_CONFIG
from hatchvm.snapshots.seal import Ring
from hatchvm.testing.clock import SteeredClock
from hatchvm.testing.objects import MemoryStore
from hatchvm.testing.sleeper import BLOCK, CREATED_AT, FRAME, Piece, Sleeper, piece, sparse

RING: Final = Ring([bytes(range(32))])

pieces = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 70).map(lambda n: n * BLOCK), st.integers(0, 2 * FRAME)),
        st.one_of(st.integers(1, 70).map(lambda n: n * BLOCK), st.integers(1, 3 * BLOCK)),
        st.sampled_from(["zero", "text", "1", "2"]),
    ),
    max_size=6,
)
sizes = st.one_of(
    st.integers(0, 3 * FRAME), st.sampled_from([0, 1, BLOCK - 1, BLOCK, BLOCK + 1, FRAME - 1, FRAME, FRAME + 1])
)
contents = st.tuples(sizes, pieces)


@pytest.fixture
def clock() -> SteeredClock:
    return SteeredClock()


@pytest.fixture
def store(clock: SteeredClock) -> MemoryStore:
    return MemoryStore(clock)


@pytest.fixture
def vm(store: MemoryStore, tmp_path: Path, clock: SteeredClock) -> Sleeper:
    vm = Sleeper(store, tmp_path, clock)
    vm.holds(memory=bytes(BLOCK) + piece(BLOCK + 9, "text"), state=piece(60_000, "1"), disk=piece(7, "2"))
    return vm


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(memory=contents, disk=st.none() | contents, state=contents, ring=st.sampled_from([Ring(), RING]))
async def test_any_files_come_back_as_they_were(
    memory: tuple[int, list[Piece]], disk: tuple[int, list[Piece]] | None, state: tuple[int, list[Piece]], ring: Ring
) -> None:
    clock = SteeredClock()
    with TemporaryDirectory() as folder:
        vm = Sleeper(MemoryStore(clock), Path(folder), clock, ring, disk=disk is not None)
        sparse(vm.files / "memory", *memory)
        sparse(vm.files / "state", *state)
        if disk is not None:
            sparse(vm.files / "disk", *disk)
        written = await vm.write()
        assert await vm.restored() == vm.content()
        read, stored = await vm.engine.open(vm.keys())
        assert read.size_bytes == written.size_bytes == sum(len(data) for data in vm.content().values())
        assert read.stored_bytes == written.stored_bytes == sum([info.size async for info in vm.store.list("")])
        assert read.encoded_bytes == len(stored)
        await vm.engine.verify(read)
        distinct = {
            block
            for data in vm.content().values()
            for at in range(0, len(data), BLOCK)
            if any(block := data[at : at + BLOCK].ljust(BLOCK, b"\0"))
        }
        assert int(read.frames["blocks"].sum()) == len(distinct)


async def test_what_the_caller_said_is_read_back(vm: Sleeper) -> None:
    await vm.write()
    manifest, _ = await vm.engine.open(vm.keys())
    assert (manifest.keys, manifest.stamp, manifest.created_at) == (vm.keys(), vm.stamp, CREATED_AT)
    assert manifest.vm_config == '{"name": "ö"}'


async def test_a_real_directory_holds_it_too(tmp_path: Path, clock: SteeredClock) -> None:
    vm = Sleeper(DirectoryStore(tmp_path / "objects"), tmp_path, clock)
    vm.holds(memory=piece(40 * FRAME + 5, "1"), state=b"state", disk=piece(9 * FRAME, "text"))
    manifest = await vm.write()
    assert await vm.restored() == vm.content()
    for pack_id, place in (await vm.engine.locate(manifest)).items():
        assert Path(place).name == pack_id
        assert Path(place).is_file()


async def test_many_packs_come_back(vm: Sleeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hatchvm.snapshots.writer.PACK_FRAMES", 2)
    vm.holds(memory=piece(9 * FRAME, "1") + piece(FRAME, "text"), state=piece(10, "2"))
    manifest = await vm.write()
    assert len(manifest.packs) == 5
    assert await vm.restored() == vm.content()


async def test_zeros_take_no_room_stored_or_fetched(vm: Sleeper, tmp_path: Path) -> None:
    vm.holds(memory=bytes(8 * FRAME), state=b"s")
    os.truncate(vm.files / "memory", 64 * FRAME)
    manifest = await vm.write()
    assert manifest.stored_bytes < 3000
    assert await vm.restored() == vm.content()
    assert (tmp_path / "into/memory").stat().st_blocks == 0


async def test_equal_blocks_are_stored_once_wherever_they_are(vm: Sleeper) -> None:
    noise = piece(3 * BLOCK, "1")
    vm.holds(memory=noise + bytes(BLOCK) + noise + noise[BLOCK:], state=noise, disk=noise + noise[: BLOCK + 1])
    manifest = await vm.write()
    assert int(manifest.frames["blocks"].sum()) == 4  # the disk's last one is short
    assert await vm.restored() == vm.content()


async def test_one_file_alone_can_be_fetched(vm: Sleeper, tmp_path: Path) -> None:
    manifest = await vm.write()
    await vm.engine.fetch(manifest, tmp_path / "alone", only={"disk"})
    assert {path.name: path.read_bytes() for path in (tmp_path / "alone").iterdir()} == {"disk": vm.content()["disk"]}


async def test_a_fetch_replaces_what_an_earlier_one_left(vm: Sleeper, tmp_path: Path) -> None:
    await vm.write()
    (tmp_path / "into").mkdir()
    (tmp_path / "into/memory").write_bytes(b"x" * 9 * BLOCK)
    assert await vm.restored() == vm.content()


async def test_a_fetch_never_writes_through_a_link(vm: Sleeper, tmp_path: Path) -> None:
    await vm.write()
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "into").mkdir()
    (tmp_path / "into/memory").symlink_to(tmp_path / "precious")
    with pytest.raises(Unavailable):
        await vm.restored()
    assert (tmp_path / "precious").read_bytes() == b"precious"


async def test_the_order_of_the_last_wake_is_kept(vm: Sleeper) -> None:
    vm.holds(memory=piece(4 * BLOCK, "1") + bytes(BLOCK) + piece(BLOCK, "2"), state=b"s")
    pages = [9_999, 2, 5, 2, 4, 0, 2**32 - 1]  # beyond the end, twice, zeros
    await vm.write(order=np.array(pages, np.uint32))
    assert (await vm.engine.open(vm.keys()))[0].order.tolist() == [2, 5, 0]


async def test_the_order_is_told_in_blocks(vm: Sleeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hatchvm.snapshots.layout.MAX_BLOCKS", 8)
    vm.holds(memory=piece(12 * BLOCK, "1"), state=b"s", disk=b"d")
    manifest = await vm.write(order=np.array([11, 10, 3, 2, 0], np.uint32))
    assert manifest.block_bytes == 2 * BLOCK
    assert manifest.order.tolist() == [5, 1, 0]
    assert await vm.restored() == vm.content()


async def test_a_committed_snapshot_is_never_written_again(vm: Sleeper) -> None:
    await vm.write()
    before = vm.content()
    vm.holds(memory=b"another", state=b"")
    with pytest.raises(Conflict):
        await vm.write()
    assert await vm.restored() == before


async def test_delete_removes_one_snapshot_and_may_be_repeated(vm: Sleeper, store: MemoryStore) -> None:
    await vm.write(1)
    await vm.write(2, bases=[vm.keys(1)])
    await vm.engine.delete(vm.keys(1))
    await vm.engine.delete(vm.keys(1))
    with pytest.raises(NotFound):
        await vm.engine.open(vm.keys(1))
    assert vm.keys(1).trash in store.objects
    assert await vm.restored(2) == vm.content()


async def test_delete_vm_removes_every_snapshot_of_it(vm: Sleeper, store: MemoryStore) -> None:
    await vm.write(1)
    await vm.write(2)
    other = vm.sibling("other", "vm-ffffffffffff")
    other.holds(memory=b"m", state=b"s")
    await other.write(1)
    await store.put(f"snapshots/{vm.vm_id}/stray", b"not ours")
    await vm.engine.delete_vm(vm.vm_id)
    await vm.engine.delete_vm(vm.vm_id)
    assert sorted(key for key in store.objects if key.startswith("snapshots/")) == [
        f"snapshots/{vm.vm_id}/stray",
        other.keys(1).manifest,
    ]
    assert await other.restored(1) == other.content()


async def test_ids_that_are_none_are_refused(vm: Sleeper) -> None:
    with pytest.raises(Invalid):
        await vm.engine.delete_vm("")


async def test_a_missing_snapshot_is_named(vm: Sleeper) -> None:
    with pytest.raises(NotFound, match="snap-000000000007"):
        await vm.engine.open(vm.keys(7))


async def test_a_missing_file_is_named(vm: Sleeper, store: MemoryStore) -> None:
    (vm.files / "state").unlink()
    with pytest.raises(Corrupt, match="state"):
        await vm.write()
    assert store.objects == {}


async def test_a_config_that_could_not_be_read_back_is_refused(vm: Sleeper, store: MemoryStore) -> None:
    files = Files(memory=vm.files / "memory", state=vm.files / "state", disk=None)
    facts = Facts(stamp=vm.stamp, vm_config="ö" * (MAX_VM_CONFIG // 2) + "x", created_at=CREATED_AT)
    with pytest.raises(Invalid):
        await vm.engine.write(vm.keys(), files, facts)
    assert store.objects == {}


async def test_a_file_beyond_the_limits_is_refused(vm: Sleeper) -> None:
    os.truncate(vm.files / "memory", 2**41 + 1)
    with pytest.raises(Unsupported):
        await vm.write()


async def test_a_large_guest_has_larger_blocks(vm: Sleeper, tmp_path: Path) -> None:
    os.truncate(vm.files / "memory", 2**40)
    with (vm.files / "memory").open("r+b") as file:
        os.pwrite(file.fileno(), b"the end", 2**40 - 7)
    manifest = await vm.write()
    assert manifest.block_bytes == 256 * 1024
    assert len(manifest.streams[0].slots) == 2**22 <= MAX_BLOCKS
    await vm.engine.fetch(manifest, tmp_path / "into")
    with (tmp_path / "into/memory").open("rb") as file:
        assert os.fstat(file.fileno()).st_size == 2**40
        assert os.pread(file.fileno(), 9, 2**40 - 9) == b"\0\0the end"
        assert os.pread(file.fileno(), 10, BLOCK) == b"all work a"


async def test_a_file_larger_than_the_host_can_hold_is_exhausted(vm: Sleeper, tmp_path: Path) -> None:
    manifest = await vm.write()
    memory, *others = manifest.streams
    with pytest.raises(Exhausted):
        await vm.engine.fetch(replace(manifest, streams=(replace(memory, size=2**62), *others)), tmp_path / "into")
    assert list((tmp_path / "into").iterdir()) == []


async def test_a_chain_of_twenty_comes_back_link_by_link(vm: Sleeper, store: MemoryStore) -> None:
    noise = random.Random(5)
    memory = bytearray(piece(3 * FRAME, "1") + bytes(FRAME) + piece(FRAME, "text"))
    disk = bytearray(piece(FRAME, "2"))
    kept = []
    for number in range(1, 21):
        for _ in range(6):
            data, length = noise.choice([memory, disk]), noise.choice([1, 100, BLOCK, 5 * BLOCK])
            at = noise.randrange(len(data) - length)
            data[at : at + length] = noise.choice([bytes(length), noise.randbytes(length), bytes(memory[:length])])
        vm.holds(memory=bytes(memory), state=noise.randbytes(500), disk=bytes(disk))
        await vm.write(number, bases=[vm.keys(number - 1)] if number > 1 else [])
        kept.append(vm.content())
    reads: list[str] = []

    async def watch(step: str, key: str) -> None:
        if step == "get":
            reads.append(key)

    for number in range(1, 21):
        assert await vm.restored(number) == kept[number - 1]
    assert await vm.restored(20, engine=vm.engine_over(store.seen_by(watch))) == kept[-1]
    assert [key for key in reads if not key.startswith("packs/")] == [vm.keys(20).manifest]
    for number in range(1, 20):
        await vm.engine.delete(vm.keys(number))
    assert await vm.restored(20) == kept[-1]
