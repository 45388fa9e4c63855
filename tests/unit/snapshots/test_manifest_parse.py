"""A manifest is hostile until proven otherwise. Every one here carries a right digest: only its sense is wrong."""

from __future__ import annotations

import contextlib
import copy
import json
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from hatchvm.base.errors import Corrupt, HatchError, Unsupported
from hatchvm.snapshots.codec import digest
from hatchvm.snapshots.layout import MAX_BLOCKS, MAX_STREAM_BYTES, SnapshotKeys
from hatchvm.snapshots.manifest import FRAME, HEAD, MAGIC, Manifest, Pack, Stream, encode
from hatchvm.snapshots.parse import decode
from hatchvm.snapshots.seal import OPEN, Ring
from hatchvm.testing.vmm import STAMP

KEYS: Final = SnapshotKeys("vm-0123456789ab", "snap-0123456789ab")
RING: Final = Ring([bytes(range(32))])
BLOCK: Final = 4096
PACKS: Final = (Pack("0" * 32, 20_000, OPEN), Pack("ab" * 16, 9_000, RING.current))
#: pack, offset, length, blocks, codec: 3 blocks compressed, 2 as they are; 64 compressed, 1 as it is, both sealed
FRAMES: Final = np.array(
    [
        (0, 0, 100, 3, 1, bytes(32)),
        (0, 100, 2 * BLOCK, 2, 0, b"\1" * 32),
        (1, 0, 4096, 64, 1, b"\2" * 32),
        (1, 4096, BLOCK + 16, 1, 0, b"\3" * 32),
    ],
    [(name, FRAME[name] if name != "digest" else "V32") for name in FRAME.names or ()],
).view(FRAME)


def slots(*numbers: int) -> Any:
    return np.array(numbers, np.uint32)


GOOD: Final = Manifest(
    snapshot_id=KEYS.snapshot_id,
    vm_id=KEYS.vm_id,
    created_at=datetime(2026, 3, 6, 14, 30, 0, 5, tzinfo=UTC),
    stamp=STAMP,
    vm_config='{"ö":1}',
    block_bytes=BLOCK,
    packs=PACKS,
    frames=FRAMES,
    streams=(
        Stream("memory", 6 * BLOCK, slots(1, 0, 3, 65, 66, 192)),
        Stream("state", 10, slots(193)),
        Stream("disk", 2 * BLOCK + 1, slots(0, 0, 1)),
    ),
    order=slots(5, 0, 3),
    added_bytes=29_000,
)
ENCODED, DATA = encode(GOOD, Ring())


@dataclass
class Body:
    """The plain body, taken apart and put together without the code under test."""

    facts: dict[str, Any]
    frames: Any
    streams: list[Any]
    order: Any
    rest: bytes = b""

    def plain(self) -> bytes:
        text = json.dumps(self.facts).encode()
        columns = b"".join(np.ascontiguousarray(self.frames[name]).tobytes() for name in FRAME.names or ())
        arrays = b"".join(differences(numbers) for numbers in [*self.streams, self.order])
        return struct.pack("<I", len(text)) + text + columns + arrays + self.rest


def differences(numbers: Any) -> bytes:
    before, steps = 0, []
    for number in np.asarray(numbers).tolist():
        steps.append((number - before) % 2**32)
        before = number
    return struct.pack(f"<{len(steps)}I", *steps)


def body() -> Body:
    _, _, _, _, _, size = HEAD.unpack_from(DATA)
    plain = zstandard.ZstdDecompressor().decompress(DATA[HEAD.size :], max_output_size=size)
    (length,) = struct.unpack_from("<I", plain)
    return Body(
        json.loads(plain[4 : 4 + length]),
        FRAMES.copy(),
        [stream.slots.copy() for stream in GOOD.streams],
        GOOD.order.copy(),
    )


def signed(plain: bytes, *, version: int = 2, declared: int | None = None, packed: bytes | None = None) -> bytes:
    """The object with that plain body, and a right digest."""
    stored = zstandard.ZstdCompressor().compress(plain) if packed is None else packed
    size = len(plain) if declared is None else declared
    check = digest(HEAD.pack(MAGIC, version, OPEN, bytes(16), bytes(32), size) + stored)
    return HEAD.pack(MAGIC, version, OPEN, bytes(16), check, size) + stored


def with_fact(where: str, value: object) -> bytes:
    """The good body with one fact (`a.0.b`) set to `value`, or removed if it is `...`."""
    changed = copy.deepcopy(body())
    *path, last = [int(part) if part.isdigit() else part for part in where.split(".")]
    place: Any = changed.facts
    for part in path:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return signed(changed.plain())


def same(one: Manifest, other: Manifest) -> bool:
    plain = ("snapshot_id", "vm_id", "created_at", "stamp", "vm_config", "block_bytes", "packs", "added_bytes")
    return (
        all(getattr(one, name) == getattr(other, name) for name in plain)
        and one.frames.tobytes() == other.frames.tobytes()
        and [(s.name, s.size, s.slots.tolist()) for s in one.streams]
        == [(s.name, s.size, s.slots.tolist()) for s in other.streams]
        and one.order.tolist() == other.order.tolist()
    )


def test_what_was_encoded_is_decoded() -> None:
    for ring in (Ring(), RING):
        written, data = encode(GOOD, ring)
        read = decode(data, KEYS, ring)
        assert same(read, GOOD)
        assert same(written, GOOD)
        assert read.encoded_bytes == written.encoded_bytes == len(data)
        assert read.stored_bytes == len(data) + 29_000
        assert read.size_bytes == 6 * BLOCK + 10 + 2 * BLOCK + 1


def test_a_body_made_by_hand_is_read() -> None:
    assert same(decode(signed(body().plain()), KEYS, Ring()), GOOD)


def test_no_bit_of_it_can_change_unnoticed() -> None:
    for data, ring in ((DATA, Ring()), (encode(GOOD, RING)[1], RING)):
        for position in range(len(data)):
            for bit in range(8):
                damaged = bytearray(data)
                damaged[position] ^= 1 << bit
                with pytest.raises(Corrupt):
                    decode(bytes(damaged), KEYS, ring)


@pytest.mark.parametrize("cut", [0, 1, HEAD.size - 1, HEAD.size, len(DATA) - 1])
def test_a_part_of_it_is_none(cut: int) -> None:
    with pytest.raises(Corrupt):
        decode(DATA[:cut], KEYS, Ring())
    with pytest.raises(Corrupt):
        decode(DATA + b"\0" * (cut + 1), KEYS, Ring())


HOSTILE: Final[list[tuple[str, object]]] = [
    ("snapshot_id", "snap-ffffffffffff"),
    ("vm_id", "vm-ffffffffffff"),
    ("vm_id", None),
    ("extra", 1),
    ("stamp", ...),
    ("created_at", "yesterday"),
    ("created_at", "2026-03-06T14:30:00"),
    ("created_at", 5),
    ("vm_config", {"a": 1}),
    ("vm_config", "x" * 5_000_000),
    ("vm_config", "\ud800"),
    ("stamp.vmm", 1),
    ("stamp.mem_mib", "1"),
    ("stamp.mem_mib", True),
    ("stamp.mem_mib", 10**400),
    ("stamp.mem_mib", float("nan")),
    ("stamp.devices", ...),
    ("stamp.extra", ""),
    ("block_bytes", 0),
    ("block_bytes", 2048),
    ("block_bytes", 4097),
    ("block_bytes", 8192),
    ("block_bytes", 512 * 1024),
    ("block_bytes", -4096),
    ("added_bytes", -1),
    ("added_bytes", 1.5),
    ("packs", {}),
    ("packs", []),
    ("packs.0", []),
    ("packs.0", ["0" * 32, 20_000]),
    ("packs.0", [["0" * 32, 20_000, "", ""]]),
    ("packs.0.0", "../" * 8 + "etc/pass"),
    ("packs.0.0", "0" * 31),
    ("packs.0.0", "0" * 32 + "\n"),
    ("packs.0.0", "A" * 32),
    ("packs.0.0", "ab" * 16),
    ("packs.0.1", 0),
    ("packs.0.1", 100 + 2 * BLOCK - 1),
    ("packs.0.1", 2**31),
    ("packs.0.1", True),
    ("packs.0.2", None),
    ("packs.0.2", "ab"),
    ("packs.0.2", "x" * 16),
    ("packs.0.2", "ab" * 8),
    ("packs.1.2", ""),
    ("frames", -1),
    ("frames", 3),
    ("frames", 5),
    ("frames", MAX_BLOCKS + 1),
    ("frames", "4"),
    ("streams", {}),
    ("streams", []),
    ("streams.0", []),
    ("streams.0", {}),
    ("streams.0", ["memory"]),
    ("streams.0.0", "state"),
    ("streams.0.0", 1),
    ("streams.1.0", "memory"),
    ("streams.2.0", "swap"),
    ("streams.2", ...),
    ("streams.0.1", -1),
    ("streams.0.1", 5 * BLOCK),
    ("streams.0.1", 7 * BLOCK),
    ("streams.0.1", MAX_STREAM_BYTES + 1),
    ("streams.0.1", 6.0 * BLOCK),
    ("order", -1),
    ("order", 2),
    ("order", 7),
    ("order", None),
]


@pytest.mark.parametrize(("where", "value"), HOSTILE, ids=lambda value: repr(value)[:60])
def test_facts_that_cannot_be_are_corrupt(where: str, value: object) -> None:
    with pytest.raises(Corrupt):
        decode(with_fact(where, value), KEYS, Ring())


TABLES: Final[dict[str, Callable[[Body], None]]] = {
    "a frame of no pack": lambda b: put(b, 0, pack=2),
    "a frame beyond its pack": lambda b: put(b, 0, offset=20_000 - 99),
    "a frame that begins beyond 32 bits": lambda b: put(b, 0, offset=2**32 - 1, length=100),
    "a sealed frame beyond its pack": lambda b: put(b, 3, offset=9_000 - BLOCK - 15),
    "a frame of nothing": lambda b: put(b, 0, length=0),
    "a sealed frame of nothing": lambda b: put(b, 2, length=16),
    "a sealed frame shorter than its seal": lambda b: put(b, 2, length=15),
    "a frame without blocks": lambda b: put(b, 3, blocks=0),
    "a frame of nothing without blocks": lambda b: put(without(b, 1), 1, length=0, blocks=0),
    "a frame too large": lambda b: put(b, 2, blocks=65),
    "another codec": lambda b: put(b, 0, codec=2),
    "a compressed frame as it is": lambda b: put(b, 0, codec=0),
    "a frame as it is, compressed": lambda b: put(b, 1, codec=1),
    "a frame too short to be as it is": lambda b: put(b, 1, length=2 * BLOCK - 1),
    "a sealed frame without its seal": lambda b: put(b, 3, length=BLOCK),
    "a block of no frame": lambda b: b.streams[0].__setitem__(1, 4 * 64 + 1),
    "a block far off": lambda b: b.streams[0].__setitem__(1, 2**32 - 1),
    "a place beyond its frame": lambda b: b.streams[0].__setitem__(0, 4),
    "a place beyond the last frame": lambda b: b.streams[2].__setitem__(2, 3 * 64 + 2),
    "an order of no block": lambda b: b.order.__setitem__(1, 6),
    "too little": lambda b: setattr(b, "order", b.order[:-1]),
    "too much": lambda b: setattr(b, "rest", b"\0"),
}


def without(changed: Body, frame: int) -> Body:
    """No block lies in that frame."""
    for numbers in changed.streams:
        numbers[(numbers - 1) // 64 == frame] = 0
    return changed


def put(changed: Body, frame: int, **values: int) -> None:
    for name, value in values.items():
        changed.frames[name][frame] = value


@pytest.mark.parametrize("change", TABLES.values(), ids=TABLES)
def test_tables_that_cannot_be_are_corrupt(change: Callable[[Body], None]) -> None:
    changed = body()
    change(changed)
    with pytest.raises(Corrupt):
        decode(signed(changed.plain()), KEYS, Ring())


@pytest.mark.parametrize(
    "text", [b"", b"1", b"null", b"[" * 200_000, b"{" * 9, b"\xff", b'{"a":1}', b"9" * 9000, b'"\\ud800"', b"NaN"]
)
def test_what_is_no_body_is_corrupt(text: bytes) -> None:
    for plain in (text, struct.pack("<I", len(text)) + text, struct.pack("<I", 2**32 - 1) + text):
        with pytest.raises(Corrupt):
            decode(signed(plain), KEYS, Ring())


def test_the_future_is_told_from_damage() -> None:
    with pytest.raises(Unsupported, match="the snapshot has format 17, this hatchvm reads format 2"):
        decode(signed(b"{}", version=17), KEYS, Ring())
    damaged = bytearray(DATA)
    damaged[8] = 17
    with pytest.raises(Corrupt):
        decode(bytes(damaged), KEYS, Ring())


#: Announced by a few hundred bytes.
HUGE: Final[dict[str, bytes]] = {
    "frames": with_fact("frames", MAX_BLOCKS),
    "blocks": with_fact("streams.0.1", MAX_BLOCKS * BLOCK),
    "blocks beyond all": with_fact("streams", [["memory", MAX_STREAM_BYTES], ["state", MAX_STREAM_BYTES]]),
    "text": signed(struct.pack("<I", 2**32 - 1)),
    "declared size": signed(b"x", declared=2**40),
    "a bomb with a lie": signed(b"x", packed=zstandard.ZstdCompressor().compress(bytes(64 * 1024 * 1024))),
}


@pytest.mark.parametrize("data", HUGE.values(), ids=HUGE)
def test_what_it_announces_is_not_taken_before_it_is_there(data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(Corrupt):
            decode(data, KEYS, Ring())
        assert tracemalloc.get_traced_memory()[1] < 1024 * 1024
    finally:
        tracemalloc.stop()


def test_a_lost_key_is_named_and_is_no_damage() -> None:
    data = encode(GOOD, RING)[1]
    for ring in (Ring(), Ring([bytes(32)])):
        with pytest.raises(Unsupported, match=f"key {RING.current.hex()}.*HATCH_SNAPSHOT_KEY_FILE"):
            decode(data, KEYS, ring)


def test_a_sealed_one_is_good_under_its_own_key_only() -> None:
    data = encode(GOOD, RING)[1]
    for keys in (SnapshotKeys(KEYS.vm_id, "snap-ffffffffffff"), SnapshotKeys("vm-ffffffffffff", KEYS.snapshot_id)):
        with pytest.raises(Corrupt):
            decode(data, keys, RING)


def test_a_sealed_one_that_was_tampered_with_is_corrupt() -> None:
    magic, version, key_id, salt, _, size = HEAD.unpack_from(encode(GOOD, RING)[1])
    stored = bytearray(encode(GOOD, RING)[1][HEAD.size :])
    stored[len(stored) // 2] ^= 1
    check = digest(HEAD.pack(magic, version, key_id, salt, bytes(32), size) + stored)
    with pytest.raises(Corrupt):
        decode(HEAD.pack(magic, version, key_id, salt, check, size) + bytes(stored), KEYS, RING)


def test_no_two_of_them_are_sealed_alike() -> None:
    one, other = encode(GOOD, RING)[1], encode(GOOD, RING)[1]
    assert one[HEAD.size :][:64] != other[HEAD.size :][:64]


def test_one_that_could_not_be_read_back_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hatchvm.snapshots.manifest.MAX_MANIFEST_BYTES", len(DATA) - 1)
    with pytest.raises(Unsupported):
        encode(GOOD, Ring())
    for limit in (len(DATA) - 1, HEAD.unpack_from(DATA)[5] - 1):  # as stored, and plain
        monkeypatch.setattr("hatchvm.snapshots.layout.MAX_MANIFEST_BYTES", limit)
        with pytest.raises(Corrupt):
            decode(DATA, KEYS, Ring())


def test_more_blocks_than_may_be_are_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hatchvm.snapshots.layout.MAX_BLOCKS", 9)
    with pytest.raises(Corrupt):
        decode(DATA, KEYS, Ring())


def test_bytes_after_the_body_are_corrupt() -> None:
    plain = body().plain()
    with pytest.raises(Corrupt):
        decode(signed(plain, packed=zstandard.ZstdCompressor().compress(plain) + b"hidden"), KEYS, Ring())


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=300))
def test_no_bytes_whatever_raise_anything_else(data: bytes) -> None:
    for attempt in (data, signed(data), signed(b"", packed=data), DATA[: len(data)] + data, data + DATA):
        with pytest.raises(HatchError):
            decode(attempt, KEYS, Ring())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
places = st.sampled_from(sorted({where for where, _ in HOSTILE if not where.endswith("extra")}))


@settings(deadline=None)
@given(where=places, value=json_values)
def test_no_fact_whatever_raises_anything_else(where: str, value: object) -> None:
    data = with_fact(where, value)
    with contextlib.suppress(Corrupt):
        assert decode(data, KEYS, Ring()).keys == KEYS


@settings(deadline=None)
@given(
    frame=st.integers(0, 3),
    column=st.sampled_from(["pack", "offset", "length", "blocks", "codec"]),
    value=st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1)),
    place=st.integers(0, 5),
    slot=st.one_of(st.integers(0, 300), st.integers(0, 2**32 - 1)),
)
def test_whatever_is_let_through_points_inside(frame: int, column: str, value: int, place: int, slot: int) -> None:
    changed = body()
    put(changed, frame, **{column: value % (1 << 8 * FRAME[column].itemsize)})
    changed.streams[0][place] = slot
    with contextlib.suppress(Corrupt):
        read = decode(signed(changed.plain()), KEYS, Ring())
        for row in read.frames:
            pack = read.packs[row["pack"]]
            tag = 0 if pack.key_id == OPEN else 16
            assert int(row["offset"]) + int(row["length"]) <= pack.size
            assert tag < int(row["length"]) <= int(row["blocks"]) * BLOCK + tag
            assert 1 <= row["blocks"] <= 64
        for stream in read.streams:
            for number in stream.slots[stream.slots > 0].tolist():
                assert (number - 1) % 64 < read.frames["blocks"][(number - 1) // 64]


EMPTY: Final = replace(
    GOOD,
    packs=(),
    frames=np.zeros(0, FRAME),
    streams=(Stream("memory", 0, slots()), Stream("state", 0, slots())),
    order=slots(),
)


@pytest.mark.parametrize("block_bytes", [4096, 8192, 256 * 1024])
def test_an_empty_vm_is_one(block_bytes: int) -> None:
    written, data = encode(replace(EMPTY, block_bytes=block_bytes), Ring())
    assert same(decode(data, KEYS, Ring()), written)


@pytest.mark.parametrize("block_bytes", [0, 1, 2048, 4095, 3 * 4096, 512 * 1024])
def test_blocks_have_the_size_of_a_power_of_two(block_bytes: int) -> None:
    with pytest.raises(Corrupt):
        decode(encode(replace(EMPTY, block_bytes=block_bytes), Ring())[1], KEYS, Ring())
