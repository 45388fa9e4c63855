"""Whatever happens to stored bytes: it is noticed, the object is named, and no file is left to be resumed from."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from hatchvm.base.errors import Corrupt, NotFound, Unsupported
from hatchvm.snapshots.codec import Codec, Encoder, digest
from hatchvm.snapshots.manifest import HEAD, Manifest
from hatchvm.snapshots.seal import Ring
from hatchvm.testing.clock import SteeredClock
from hatchvm.testing.objects import MemoryStore
from hatchvm.testing.sleeper import BLOCK, FRAME, Sleeper, piece

RING: Final = Ring([bytes(range(32))])


class House:
    """A committed snapshot, another that uses other packs, and ways to damage them."""

    def __init__(self, vm: Sleeper, store: MemoryStore, manifest: Manifest, other: Sleeper) -> None:
        self.vm = vm
        self.store = store
        self.manifest = manifest
        self.other = other
        self.into = vm.root / "into"

    def packs(self) -> list[str]:
        return [f"packs/{self.manifest.domain}/{pack.id}" for pack in self.manifest.packs]

    def read(self, key: str) -> bytes:
        return self.store.objects[key][0]

    def change(self, key: str, data: bytes) -> None:
        self.store.objects[key] = data, self.store.objects[key][1]

    def frames_bytes(self, key: str) -> int:
        """How much of a pack is frames."""
        mine = self.manifest.frames[self.manifest.frames["pack"] == self.packs().index(key)]
        return int((mine["offset"] + mine["length"]).max())

    async def assert_corrupt(self, key: str, manifest: Manifest | None = None, *, fetch: bool = True) -> None:
        """Both name the object; `fetch`: nothing of it is left."""
        with pytest.raises(Corrupt, match=re.escape(key)):
            await self.vm.engine.verify(manifest or self.manifest)
        if fetch:
            with pytest.raises(Corrupt, match=re.escape(key)):
                await self.vm.engine.fetch(manifest or self.manifest, self.into)
            assert list(self.into.iterdir()) == []
        await self.other.engine.verify((await self.other.engine.open(self.other.keys()))[0])
        assert await self.other.restored() == self.other.content()


@pytest.fixture(params=["open", "sealed"])
async def house(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    """Packs of two frames: compressed ones, incompressible ones, short ones."""
    monkeypatch.setattr("hatchvm.snapshots.writer.PACK_FRAMES", 2)
    store = MemoryStore(SteeredClock())
    vm = Sleeper(store, tmp_path / "vm", store.clock, Ring() if request.param == "open" else RING)
    noise = random.Random(1)
    text = b"".join(noise.choice([b"all ", b"work ", b"and ", b"no ", b"play "]) for _ in range(200_000))
    vm.holds(memory=text[: 2 * FRAME] + piece(3 * FRAME, "1") + bytes(FRAME), state=piece(60_000, "2"), disk=text[:999])
    manifest = await vm.write()
    other = vm.sibling("other", "vm-ffffffffffff")
    other.holds(memory=text[: 2 * FRAME], state=b"other")
    await other.write()
    return House(vm, store, manifest, other)


def flipped(data: bytes, position: int, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[position] ^= 1 << bit
    return bytes(damaged)


async def test_there_is_something_to_damage(house: House) -> None:
    assert len(house.packs()) > 2
    assert set(house.manifest.frames["codec"].tolist()) == {Codec.RAW, Codec.ZSTD}
    await house.vm.engine.verify(house.manifest)
    assert await house.vm.restored() == house.vm.content()


async def test_a_flipped_bit_that_the_decompressor_ignores(house: House) -> None:
    key = house.packs()[0]
    house.change(key, flipped(house.read(key), 4, 4))  # the unused bit of the frame header descriptor (RFC 8878)
    await house.assert_corrupt(key)


async def test_a_flipped_bit_anywhere_in_a_pack(house: House) -> None:
    noise = random.Random(2)
    for number, key in enumerate(house.packs()):
        whole = house.read(key)
        mine = house.manifest.frames[house.manifest.frames["pack"] == number]
        starts = mine["offset"].tolist()
        ends = (mine["offset"] + mine["length"] - 1).tolist()
        for position in {*starts, *ends, noise.randrange(house.frames_bytes(key))}:
            house.change(key, flipped(whole, position, noise.randrange(8)))
            await house.assert_corrupt(key)
        tail = house.frames_bytes(key)
        for position in {tail, len(whole) - 1, noise.randrange(tail, len(whole))}:  # a fetch does without the tail
            house.change(key, flipped(whole, position, noise.randrange(8)))
            await house.assert_corrupt(key, fetch=False)
            assert await house.vm.restored() == house.vm.content()
            for path in house.into.iterdir():
                path.unlink()
        house.change(key, whole)
    assert await house.vm.restored() == house.vm.content()


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: data[1:], lambda data: bytes(len(data))],
    ids=["emptied", "truncated", "beheaded", "zeroed"],
)
async def test_a_pack_of_another_content(house: House, damage: Callable[[bytes], bytes]) -> None:
    for key in house.packs():
        whole = house.read(key)
        house.change(key, damage(whole))
        await house.assert_corrupt(key)
        house.change(key, whole)


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: data * 2])
async def test_a_pack_of_another_length(house: House, damage: Callable[[bytes], bytes]) -> None:
    for key in house.packs():
        whole = house.read(key)
        house.change(key, damage(whole))
        await house.assert_corrupt(key, fetch=False)
        house.change(key, whole)


async def test_a_missing_pack(house: House) -> None:
    for key in house.packs():
        kept = house.store.objects.pop(key)
        await house.assert_corrupt(key)
        house.store.objects[key] = kept


async def test_packs_in_each_others_place(house: House) -> None:
    first, second = house.packs()[:2]
    mine, other = house.read(first), house.read(second)
    house.change(first, other)
    await house.assert_corrupt(first)
    house.change(first, mine)
    house.change(second, mine)
    await house.assert_corrupt(second)


async def test_any_flipped_bit_in_the_manifest(house: House) -> None:
    key = house.manifest.keys.manifest
    whole = house.read(key)
    noise = random.Random(3)
    for position in [*range(HEAD.size), *noise.sample(range(HEAD.size, len(whole)), 60), len(whole) - 1]:
        house.change(key, flipped(whole, position, noise.randrange(8)))
        with pytest.raises(Corrupt, match="manifest"):
            await house.vm.engine.open(house.manifest.keys)


async def test_a_truncated_or_missing_manifest(house: House) -> None:
    key = house.manifest.keys.manifest
    whole = house.read(key)
    for damaged in (b"", whole[:1], whole[:20], whole[: len(whole) // 2], whole[:-1], whole + b"\0"):
        house.change(key, damaged)
        with pytest.raises(Corrupt):
            await house.vm.engine.open(house.manifest.keys)
    del house.store.objects[key]
    with pytest.raises(NotFound):
        await house.vm.engine.open(house.manifest.keys)


async def test_a_manifest_of_another_snapshot(house: House) -> None:
    there = house.vm.keys(9)
    house.store.objects[there.manifest] = house.store.objects[house.manifest.keys.manifest]
    with pytest.raises(Corrupt):
        await house.vm.engine.open(there)


async def test_a_manifest_too_long_to_be_one(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hatchvm.snapshots.layout.MAX_MANIFEST_BYTES", house.manifest.encoded_bytes - 1)
    with pytest.raises(Corrupt):
        await house.vm.engine.open(house.manifest.keys)


def lie(house: House, frame: int, **values: Any) -> Manifest:
    """The manifest with another row for a frame: what somebody who can write to the store can make."""
    frames = house.manifest.frames.copy()
    for name, value in values.items():
        frames[name][frame] = value
    return replace(house.manifest, frames=frames)


async def test_a_frame_of_another_size_or_place_under_a_right_digest(house: House) -> None:
    key = house.packs()[0]
    length, blocks = (int(house.manifest.frames[name][0]) for name in ("length", "blocks"))
    await house.assert_corrupt(key, lie(house, 0, blocks=blocks - 1))
    await house.assert_corrupt(key, lie(house, 0, length=length - 1))
    await house.assert_corrupt(key, lie(house, 0, offset=1))
    await house.assert_corrupt(key, lie(house, 0, codec=Codec.RAW))
    await house.assert_corrupt(key, lie(house, 0, digest=0))


@pytest.mark.parametrize("house", ["open"], indirect=True)
@pytest.mark.parametrize(
    "stored",
    [
        Encoder().encode(bytes(64 * 1024 * 1024))[1],  # a bomb
        Encoder().encode(b"a" * FRAME)[1] + b"hidden",
        Encoder().encode(b"a" * (FRAME - 1))[1],
        b"\0" * 50,
        b"\x28\xb5\x2f\xfd",
        b"\x28\xb5\x2f\xfd" + b"\xff" * 30,
    ],
    ids=["bomb", "more after it", "too short", "zeros", "magic", "magic and nonsense"],
)
async def test_what_is_no_frame_under_a_right_digest(house: House, stored: bytes) -> None:
    key = house.packs()[0]
    house.change(key, stored + house.read(key)[len(stored) :])
    check = np.frombuffer(digest(stored), np.uint8)
    await house.assert_corrupt(key, lie(house, 0, length=len(stored), digest=check))


@pytest.mark.parametrize("house", ["sealed"], indirect=True)
async def test_a_sealed_frame_that_was_tampered_with_under_a_right_digest(house: House) -> None:
    key, length = house.packs()[0], int(house.manifest.frames["length"][0])
    data = flipped(house.read(key), length // 2, 0)
    house.change(key, data)
    await house.assert_corrupt(key, lie(house, 0, digest=np.frombuffer(digest(data[:length]), np.uint8)))


@pytest.mark.parametrize("house", ["sealed"], indirect=True)
async def test_a_lost_key_is_no_damage(house: House) -> None:
    for ring in (Ring(), Ring([bytes(32)])):
        locked_out = Sleeper(house.store, house.vm.root, house.store.clock, ring)
        for attempt in (
            locked_out.engine.open(house.vm.keys()),
            locked_out.engine.verify(house.manifest),
            locked_out.engine.fetch(house.manifest, house.into),
        ):
            with pytest.raises(Unsupported, match=RING.current.hex()):
                await attempt
        assert list(house.into.iterdir()) == []


@pytest.mark.parametrize("house", ["sealed"], indirect=True)
async def test_nothing_of_the_guest_is_readable_in_a_sealed_store(house: House) -> None:
    whole = b"".join(data for data, _ in house.store.objects.values())
    plain = house.vm.content()
    for data in plain.values():
        for at in range(0, len(data) - 16, 1009):
            assert not any(data[at : at + 16]) or data[at : at + 16] not in whole
    for secret in (b"fake", '{"name": "ö"}'.encode(), digest(plain["memory"][:BLOCK])[:16]):
        assert secret not in whole
