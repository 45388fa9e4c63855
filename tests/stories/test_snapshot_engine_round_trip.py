"""A snapshot comes back as it was stored, and the engine tells the truth about what it holds."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hatchvm.base.errors import Conflict, Corrupt, Exhausted, Invalid, NotFound, Unavailable, Unsupported
from hatchvm.objects.directory import DirectoryStore
from hatchvm.snapshots.engine import SnapshotEngine
from hatchvm.snapshots.layout import BLOCK_BYTES, PACK_BYTES
from hatchvm.snapshots.manifest import Manifest
from hatchvm.testing import vmm

VM: Final = "vm-0123456789ab"
SNAP: Final = "snap-0123456789ab"
OTHER: Final = "snap-ba9876543210"
STAMP: Final = replace(vmm.STAMP, vmm_version="7.2 ü")
CREATED_AT: Final = datetime(2026, 3, 6, 14, 30, 0, 123456, tzinfo=UTC)

#: offset, length, kind: what is written into an otherwise empty file
Piece = tuple[int, int, str]
pieces = st.lists(
    st.tuples(
        st.integers(0, 6 * BLOCK_BYTES), st.integers(1, 3 * BLOCK_BYTES), st.sampled_from("zero text noise".split())
    ),
    max_size=5,
)
sizes = st.one_of(
    st.integers(0, 8 * BLOCK_BYTES),
    st.sampled_from([0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 4 * BLOCK_BYTES]),
)


def sparse(path: Path, size: int, content: Sequence[Piece], seed: int = 0) -> Path:
    """A file of `size` bytes holding those pieces, holes elsewhere."""
    noise = random.Random(seed)
    with path.open("wb") as file:
        file.truncate(size)
        for offset, length, kind in content:
            length = max(0, min(length, size - offset))
            data = {"zero": bytes(length), "text": (b"all work and no play " * (length // 21 + 1))[:length]}.get(kind)
            os.pwrite(file.fileno(), noise.randbytes(length) if data is None else data, offset)
    return path


async def write(engine: SnapshotEngine, files: Path, snapshot_id: str = SNAP, *, disk: bool = True) -> Manifest:
    return await engine.write(
        snapshot_id,
        VM,
        memory=files / "memory",
        state=files / "state",
        disk=files / "disk.qcow2" if disk else None,
        stamp=STAMP,
        vm_config='{"name": "ö"}',
        created_at=CREATED_AT,
    )


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "vm"
    folder.mkdir()
    sparse(folder / "memory", 5 * BLOCK_BYTES, [(BLOCK_BYTES, BLOCK_BYTES + 9, "text")])
    sparse(folder / "state", 60_000, [(0, 60_000, "noise")])
    sparse(folder / "disk.qcow2", 3 * BLOCK_BYTES + 7, [(0, 10, "noise"), (3 * BLOCK_BYTES, 7, "text")])
    return folder


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "objects")


@pytest.fixture
def engine(store: DirectoryStore) -> SnapshotEngine:
    return SnapshotEngine(store)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(memory=st.tuples(sizes, pieces), disk=st.none() | st.tuples(sizes, pieces), state_size=st.integers(0, 70_000))
async def test_any_files_come_back_as_they_were(
    memory: tuple[int, list[Piece]], disk: tuple[int, list[Piece]] | None, state_size: int
) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        files = {
            "memory": sparse(folder / "memory", *memory),
            "state": sparse(folder / "state", state_size, [(0, 9, "text")]),
        }
        if disk is not None:
            files["disk.qcow2"] = sparse(folder / "disk.qcow2", *disk)
        store = DirectoryStore(folder / "objects")
        engine = SnapshotEngine(store)
        written = await write(engine, folder, disk=disk is not None)
        assert await engine.manifest(VM, SNAP) == written
        assert written.size_bytes == sum(path.stat().st_size for path in files.values())
        assert written.stored_bytes == sum([info.size async for info in store.list("")])
        await engine.fetch(written, folder / "into")
        assert sorted(path.name for path in (folder / "into").iterdir()) == sorted(files)
        for file_name, path in files.items():
            assert (folder / "into" / file_name).read_bytes() == path.read_bytes(), file_name


async def test_many_packs_come_back_in_order(tmp_path: Path, engine: SnapshotEngine, files: Path) -> None:
    sparse(
        files / "memory", 4 * PACK_BYTES + 5, [(PACK_BYTES // 2, 3 * PACK_BYTES, "noise"), (4 * PACK_BYTES, 5, "text")]
    )
    manifest = await write(engine, files)
    assert [pack.key.rpartition("/")[2] for pack in manifest.streams[0].packs] == [
        f"memory.{number:04d}.pack" for number in range(4)
    ]
    await engine.verify(manifest)
    await engine.fetch(manifest, tmp_path / "into")
    assert (tmp_path / "into/memory").read_bytes() == (files / "memory").read_bytes()


async def test_zeros_take_no_room_stored_or_fetched(tmp_path: Path, engine: SnapshotEngine, files: Path) -> None:
    size = 64 * BLOCK_BYTES
    sparse(files / "memory", size, [(0, size, "zero")])
    manifest = await write(engine, files, disk=False)
    assert manifest.streams[0].packs == ()
    await engine.fetch(manifest, tmp_path / "into")
    assert (tmp_path / "into/memory").stat().st_size == size
    assert (tmp_path / "into/memory").stat().st_blocks == 0


async def test_a_fetch_replaces_what_an_earlier_one_left(tmp_path: Path, engine: SnapshotEngine, files: Path) -> None:
    manifest = await write(engine, files)
    into = tmp_path / "into"
    into.mkdir()
    (into / "memory").write_bytes(b"x" * 9 * BLOCK_BYTES)
    await engine.fetch(manifest, into)
    assert (into / "memory").read_bytes() == (files / "memory").read_bytes()


async def test_a_fetch_never_writes_through_a_link(tmp_path: Path, engine: SnapshotEngine, files: Path) -> None:
    manifest = await write(engine, files)
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "into").mkdir()
    (tmp_path / "into/memory").symlink_to(tmp_path / "precious")
    with pytest.raises(Unavailable):
        await engine.fetch(manifest, tmp_path / "into")
    assert (tmp_path / "precious").read_bytes() == b"precious"


async def test_a_committed_snapshot_is_never_written_again(engine: SnapshotEngine, files: Path) -> None:
    manifest = await write(engine, files)
    with pytest.raises(Conflict):
        await write(engine, files)
    await engine.verify(manifest)


async def test_list_tells_committed_from_left_over(engine: SnapshotEngine, store: DirectoryStore, files: Path) -> None:
    await write(engine, files)
    await write(engine, files, OTHER)
    await store.delete(f"snapshots/{VM}/{OTHER}/manifest.json")
    await store.put("snapshots/readme", b"not ours")
    newest = max([info.modified_at async for info in store.list(f"snapshots/{VM}/{SNAP}/")])
    listed = [stored async for stored in engine.list()]
    assert [(stored.vm_id, stored.snapshot_id, stored.committed) for stored in listed] == [
        (VM, SNAP, True),
        (VM, OTHER, False),
    ]
    assert listed[0].modified_at == newest


async def test_delete_removes_one_snapshot_and_may_be_repeated(
    engine: SnapshotEngine, store: DirectoryStore, files: Path
) -> None:
    await write(engine, files)
    other = await write(engine, files, OTHER)
    await engine.delete(VM, SNAP)
    await engine.delete(VM, SNAP)
    with pytest.raises(NotFound):
        await engine.manifest(VM, SNAP)
    assert all([OTHER in info.key async for info in store.list("")])
    await engine.verify(other)


async def test_delete_vm_removes_everything_of_it(engine: SnapshotEngine, store: DirectoryStore, files: Path) -> None:
    await write(engine, files)
    await write(engine, files, OTHER)
    await store.put(f"snapshots/{VM}/stray", b"")
    await store.put("snapshots/vm-ffffffffffff/snap-000000000000/memory.0000.pack", b"")
    await engine.delete_vm(VM)
    await engine.delete_vm(VM)
    assert [info.key async for info in store.list("")] == [
        "snapshots/vm-ffffffffffff/snap-000000000000/memory.0000.pack"
    ]


async def test_ids_that_are_none_are_refused(engine: SnapshotEngine, files: Path) -> None:
    with pytest.raises(Invalid):
        await engine.manifest("vm-../../../x", SNAP)
    with pytest.raises(Invalid):
        await engine.delete(VM, "..")
    with pytest.raises(Invalid):
        await engine.delete_vm("")


async def test_a_missing_file_is_named(engine: SnapshotEngine, files: Path) -> None:
    (files / "state").unlink()
    with pytest.raises(Corrupt, match="state"):
        await write(engine, files)
    with pytest.raises(NotFound):
        await engine.manifest(VM, SNAP)


async def test_a_file_beyond_the_limits_is_refused(engine: SnapshotEngine, files: Path) -> None:
    os.truncate(files / "memory", 2**40 + 1)
    with pytest.raises(Unsupported):
        await write(engine, files)


async def test_the_largest_guest_fits_when_it_is_empty(engine: SnapshotEngine, files: Path) -> None:
    os.truncate(files / "memory", 2**40)
    manifest = await write(engine, files)
    assert manifest.streams[0].block_size == 4 * 1024 * 1024
    assert await engine.manifest(VM, SNAP) == manifest
    await engine.verify(manifest)


async def test_a_file_larger_than_the_host_can_hold_is_exhausted(
    tmp_path: Path, engine: SnapshotEngine, files: Path
) -> None:
    manifest = await write(engine, files)
    memory, state, disk = manifest.streams
    huge = replace(manifest, streams=(replace(memory, size=2**62), state, disk))
    with pytest.raises(Exhausted):
        await engine.fetch(huge, tmp_path / "into")
    assert list((tmp_path / "into").iterdir()) == []
