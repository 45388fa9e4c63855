"""Whatever happens to stored bytes: it is noticed, the object is named, and no file is left to be resumed from."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from hatchvm.base.errors import Corrupt, NotFound, Unsupported
from hatchvm.objects.directory import DirectoryStore
from hatchvm.snapshots.codec import Codec, Encoder, digest
from hatchvm.snapshots.engine import SnapshotEngine
from hatchvm.snapshots.layout import BLOCK_BYTES
from hatchvm.snapshots.manifest import Manifest, Pack, encode
from hatchvm.testing.vmm import STAMP

VM: Final = "vm-0123456789ab"
SNAP: Final = "snap-0123456789ab"


class House:
    """A committed snapshot in a directory, and ways to damage it."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest
        self.into = root / "into"
        self.engine = SnapshotEngine(DirectoryStore(root / "objects"))

    def packs(self) -> list[Pack]:
        return [pack for stream in self.manifest.streams for pack in stream.packs]

    def path(self, key: str) -> Path:
        return self.root / "objects" / key

    async def assert_corrupt(self, key: str, manifest: Manifest | None = None) -> None:
        with pytest.raises(Corrupt, match=re.escape(key)):
            await self.engine.fetch(manifest or self.manifest, self.into)
        with pytest.raises(Corrupt, match=re.escape(key)):
            await self.engine.verify(manifest or self.manifest)
        assert list(self.into.iterdir()) == []


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    """Packs of two blocks: compressed ones, incompressible ones, short ones."""
    monkeypatch.setattr("hatchvm.snapshots.writer.PACK_BYTES", 2 * BLOCK_BYTES)
    noise = random.Random(1)
    text = b"".join(noise.choice([b"all ", b"work ", b"and ", b"no ", b"play "]) for _ in range(200_000))
    (tmp_path / "memory").write_bytes(text + bytes(2 * BLOCK_BYTES) + noise.randbytes(BLOCK_BYTES + 3))
    (tmp_path / "state").write_bytes(noise.randbytes(60_000))
    (tmp_path / "disk").write_bytes(text[:1000])
    manifest = await SnapshotEngine(DirectoryStore(tmp_path / "objects")).write(
        SNAP,
        VM,
        memory=tmp_path / "memory",
        state=tmp_path / "state",
        disk=tmp_path / "disk",
        stamp=STAMP,
        vm_config="{}",
        created_at=datetime(2026, 3, 6, tzinfo=UTC),
    )
    return House(tmp_path, manifest)


def flipped(data: bytes, position: int, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[position] ^= 1 << bit
    return bytes(damaged)


async def test_a_flipped_bit_that_the_decompressor_ignores(house: House) -> None:
    pack = house.packs()[0]
    assert pack.blocks[0].codec is Codec.ZSTD
    path = house.path(pack.key)
    path.write_bytes(flipped(path.read_bytes(), 4, 4))  # the unused bit of the frame header descriptor (RFC 8878)
    await house.assert_corrupt(pack.key)


async def test_a_flipped_bit_anywhere_in_a_pack(house: House) -> None:
    noise = random.Random(2)
    for pack in house.packs():
        path = house.path(pack.key)
        whole = path.read_bytes()
        starts = [block.offset for block in pack.blocks]
        ends = [block.offset + block.length - 1 for block in pack.blocks]
        for position in {*starts, *(start + 4 for start in starts), *ends, noise.randrange(len(whole))}:
            path.write_bytes(flipped(whole, position, noise.randrange(8)))
            await house.assert_corrupt(pack.key)
        path.write_bytes(whole)
    await house.engine.fetch(house.manifest, house.into)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[1:],
        lambda data: data + b"\0",
        lambda data: data * 2,
        lambda data: bytes(len(data)),
    ],
    ids=["emptied", "truncated", "beheaded", "grown", "doubled", "zeroed"],
)
async def test_a_pack_of_another_content(house: House, damage: Callable[[bytes], bytes]) -> None:
    for pack in house.packs():
        path = house.path(pack.key)
        whole = path.read_bytes()
        path.write_bytes(damage(whole))
        await house.assert_corrupt(pack.key)
        path.write_bytes(whole)


async def test_a_missing_pack(house: House) -> None:
    for pack in house.packs():
        path = house.path(pack.key)
        path.rename(house.root / "aside")
        await house.assert_corrupt(pack.key)
        (house.root / "aside").rename(path)


async def test_packs_in_each_others_place(house: House) -> None:
    first, second = (house.path(pack.key) for pack in house.packs()[:2])
    first.rename(house.root / "aside")
    second.rename(first)
    (house.root / "aside").rename(second)
    await house.assert_corrupt("memory.000")


async def test_any_flipped_bit_in_the_manifest(house: House) -> None:
    path = house.path(house.manifest.keys.manifest)
    whole = path.read_bytes()
    noise = random.Random(3)
    for position in [*range(90), *noise.sample(range(90, len(whole)), 60), len(whole) - 1]:
        path.write_bytes(flipped(whole, position, noise.randrange(8)))
        with pytest.raises(Corrupt):
            await house.engine.manifest(VM, SNAP)


async def test_a_truncated_or_missing_manifest(house: House) -> None:
    path = house.path(house.manifest.keys.manifest)
    whole = path.read_bytes()
    for length in (0, 1, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(Corrupt):
            await house.engine.manifest(VM, SNAP)
    path.unlink()
    with pytest.raises(NotFound):
        await house.engine.manifest(VM, SNAP)


async def test_a_manifest_of_another_snapshot(house: House) -> None:
    other = "snap-ba9876543210"
    target = house.path(f"snapshots/{VM}/{other}/manifest.json")
    target.parent.mkdir()
    target.write_bytes(house.path(house.manifest.keys.manifest).read_bytes())
    with pytest.raises(Corrupt):
        await house.engine.manifest(VM, other)


async def test_a_manifest_from_the_future(house: House) -> None:
    head, tail = b'{"format":2,"blake3":"', b'","body":["who knows"]}'
    data = head + digest(head + tail).hex().encode() + tail
    house.path(house.manifest.keys.manifest).write_bytes(data)
    with pytest.raises(Unsupported, match="format 2"):
        await house.engine.manifest(VM, SNAP)


def with_pack(house: House, plain: bytes, stored: bytes, size: int, codec: Codec = Codec.ZSTD) -> Manifest:
    """A manifest whose digests are all right, over one pack whose content may not be: a liar's work."""
    memory, state, disk = house.manifest.streams
    block = replace(memory.packs[0].blocks[0], length=len(stored), codec=codec, digest=digest(plain))
    pack = replace(memory.packs[0], size=len(stored), digest=digest(stored), blocks=(block,))
    house.path(pack.key).write_bytes(stored)
    return replace(house.manifest, streams=(replace(memory, size=size, packs=(pack,)), state, disk))


async def test_a_decompression_bomb_is_not_unpacked(house: House) -> None:
    plain = bytes(64 * 1024 * 1024)
    _, stored = Encoder().encode(plain)
    assert len(stored) < BLOCK_BYTES
    bomb = with_pack(house, plain[:BLOCK_BYTES], stored, BLOCK_BYTES)
    await house.assert_corrupt("memory.0000.pack", bomb)


async def test_a_block_of_another_content_under_right_pack_digests(house: House) -> None:
    plain = b"a" * BLOCK_BYTES
    _, stored = Encoder().encode(b"b" * BLOCK_BYTES)
    await house.assert_corrupt("memory.0000.pack", with_pack(house, plain, stored, BLOCK_BYTES))


@pytest.mark.parametrize("stored", [b"", b"\0" * 50, b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfd" + b"\xff" * 30])
async def test_what_is_no_zstd_frame(house: House, stored: bytes) -> None:
    await house.assert_corrupt("memory.0000.pack", with_pack(house, b"a" * BLOCK_BYTES, stored, BLOCK_BYTES))


async def test_bytes_after_a_frame(house: House) -> None:
    plain = b"a" * BLOCK_BYTES
    stored = Encoder().encode(plain)[1] + b"hidden"
    await house.assert_corrupt("memory.0000.pack", with_pack(house, plain, stored, BLOCK_BYTES))


async def test_a_manifest_too_long_to_be_one(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hatchvm.snapshots.layout.MAX_MANIFEST_BYTES", house.manifest.encoded_bytes - 1)
    with pytest.raises(Corrupt):
        await house.engine.manifest(VM, SNAP)


def test_a_manifest_that_could_not_be_read_back_is_not_written(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hatchvm.snapshots.manifest.MAX_MANIFEST_BYTES", house.manifest.encoded_bytes - 1)
    with pytest.raises(Unsupported):
        encode(house.manifest)
