"""A manifest is hostile until proven otherwise. Every body here carries a right digest: only its sense is wrong."""

from __future__ import annotations

import contextlib
import copy
import json
from datetime import UTC, datetime
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.base.errors import Corrupt, HatchError, Invalid, Unsupported
from hatchvm.snapshots.codec import Codec, digest
from hatchvm.snapshots.layout import BLOCK_BYTES, MAX_BLOCKS, SnapshotKeys, block_bytes_for, keys_of
from hatchvm.snapshots.manifest import Block, Manifest, Pack, Stream, encode
from hatchvm.snapshots.parse import decode
from hatchvm.testing.vmm import STAMP

KEYS: Final = SnapshotKeys("vm-0123456789ab", "snap-0123456789ab")
ZEROS: Final = bytes(32)


def stream(name: str, *packs: tuple[int, list[Block]]) -> Stream:
    made = [
        Pack(key=KEYS.pack(name, number), size=sum(b.length for b in blocks), digest=ZEROS, blocks=tuple(blocks))
        for number, blocks in packs
    ]
    return Stream(name=name, size=9 * BLOCK_BYTES + 10, block_size=BLOCK_BYTES, packs=tuple(made))


MEMORY: Final = stream(
    "memory",
    (0, [Block(0, 0, 100, Codec.ZSTD, ZEROS), Block(3, 100, BLOCK_BYTES, Codec.RAW, ZEROS)]),
    (2, [Block(5, 0, 7, Codec.ZSTD, ZEROS), Block(9, 7, 10, Codec.RAW, ZEROS)]),
)
GOOD, DATA = encode(
    Manifest(
        snapshot_id=KEYS.snapshot_id,
        vm_id=KEYS.vm_id,
        created_at=datetime(2026, 3, 6, 14, 30, 0, 5, tzinfo=UTC),
        stamp=STAMP,
        vm_config='{"ö":1}',
        streams=(MEMORY, stream("state"), stream("disk")),
    )
)
BODY: Final = json.loads(DATA)["body"]


def sealed(body: bytes, version: int = 1) -> bytes:
    head, tail = f'{{"format":{version},"blake3":"'.encode(), b'","body":' + body + b"}"
    return head + digest(head + tail).hex().encode() + tail


def changed(where: str, value: object) -> bytes:
    """The good body with one place (`a.0.b`) set to `value`, or removed if it is `...`."""
    body = copy.deepcopy(BODY)
    *path, last = [int(part) if part.isdigit() else part for part in where.split(".")]
    place: Any = body
    for part in path:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return sealed(json.dumps(body).encode())


def test_what_was_encoded_is_decoded() -> None:
    assert decode(DATA, KEYS) == GOOD
    assert GOOD.encoded_bytes == len(DATA)
    assert GOOD.stored_bytes == len(DATA) + 100 + BLOCK_BYTES + 17
    assert GOOD.size_bytes == 3 * (9 * BLOCK_BYTES + 10)


def test_no_bit_of_it_can_change_unnoticed() -> None:
    for position in range(len(DATA)):
        for bit in range(8):
            damaged = bytearray(DATA)
            damaged[position] ^= 1 << bit
            with pytest.raises(Corrupt):
                decode(bytes(damaged), KEYS)


BLOCK: Final = "streams.memory.packs.0.blocks.1"
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
    ("size_bytes", 1),
    ("size_bytes", float(BODY["size_bytes"]) + 0.5),
    ("stamp.vmm", 1),
    ("stamp.mem_mib", "1"),
    ("stamp.mem_mib", True),
    ("stamp.mem_mib", 10**400),
    ("stamp.mem_mib", float("nan")),
    ("stamp.devices", ...),
    ("stamp.extra", ""),
    ("streams", []),
    ("streams.memory", ...),
    ("streams.state", ...),
    ("streams.extra", BODY["streams"]["state"]),
    ("streams.memory.size", -1),
    ("streams.memory.size", 2**40 + 1),
    ("streams.memory.size", 5.0),
    ("streams.memory.size", 0),
    ("streams.memory.block_size", 0),
    ("streams.memory.block_size", 4096 + 1),
    ("streams.memory.block_size", 2**30),
    ("streams.state.size", 2**31),
    ("streams.memory.packs", {}),
    ("streams.memory.packs.0", []),
    ("streams.memory.packs.0.key", "/etc/passwd"),
    ("streams.memory.packs.0.key", KEYS.prefix + "../x/memory.0000.pack"),
    ("streams.memory.packs.0.key", KEYS.pack("disk", 0)),
    ("streams.memory.packs.0.key", KEYS.prefix + "memory.00000.pack"),
    ("streams.memory.packs.0.key", KEYS.prefix + "memory.٠٠٠٠.pack"),
    ("streams.memory.packs.0.key", KEYS.prefix + "memory." + "9" * 5000 + ".pack"),
    ("streams.memory.packs.0.key", KEYS.pack("memory", 2)),
    ("streams.memory.packs.0.key", KEYS.pack("memory", 3)),
    ("streams.memory.packs.0.key", KEYS.pack("memory", 0).replace("ab/", "ac/")),
    ("streams.memory.packs.0.size", 0),
    ("streams.memory.packs.0.size", 101),
    ("streams.memory.packs.0.size", 2**40),
    ("streams.memory.packs.0.blake3", "0" * 63),
    ("streams.memory.packs.0.blake3", "G" * 64),
    ("streams.memory.packs.0.blocks", []),
    (BLOCK, {}),
    (BLOCK, [3, 100, BLOCK_BYTES, "raw"]),
    (BLOCK + ".0", 0),
    (BLOCK + ".0", 10),
    (BLOCK + ".0", 5),
    (BLOCK + ".0", -1),
    (BLOCK + ".0", "3"),
    (BLOCK + ".1", 99),
    (BLOCK + ".1", -1),
    (BLOCK + ".2", 0),
    (BLOCK + ".2", BLOCK_BYTES - 1),
    (BLOCK + ".2", BLOCK_BYTES + 1),
    (BLOCK + ".3", "zstd"),
    (BLOCK + ".3", "lzma"),
    (BLOCK + ".3", 0),
    (BLOCK + ".4", "0" * 65),
    (BLOCK + ".4", None),
    ("streams.memory.packs.0.blocks.0.2", 0),
    ("streams.memory.packs.1.blocks.1.2", 11),
]


@pytest.mark.parametrize(("where", "value"), HOSTILE, ids=lambda value: repr(value)[:60])
def test_nonsense_is_corrupt(where: str, value: object) -> None:
    with pytest.raises(Corrupt):
        decode(changed(where, value), KEYS)


@pytest.mark.parametrize(
    "body", [b"", b"1", b"null", b"[" * 200_000, b"{" * 9, b"\xff", b'{"a":1}', b"9" * 9000, b'"\\ud800"', b"NaN"]
)
def test_what_is_no_body_is_corrupt(body: bytes) -> None:
    with pytest.raises(Corrupt):
        decode(sealed(body), KEYS)


def test_the_future_is_told_from_damage() -> None:
    with pytest.raises(Unsupported, match="format 17"):
        decode(sealed(b"{}", version=17), KEYS)
    with pytest.raises(Corrupt):
        decode(DATA.replace(b'"format":1', b'"format":2'), KEYS)


@given(st.binary(min_size=1, max_size=300))
def test_no_bytes_whatever_raise_anything_else(data: bytes) -> None:
    for attempt in (data, sealed(data), DATA[: len(data)] + data, data + DATA):
        with pytest.raises(HatchError):
            decode(attempt, KEYS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
places = st.sampled_from(sorted({where for where, _ in HOSTILE if not where.endswith("extra")}))


@given(where=places, value=json_values)
def test_no_value_anywhere_raises_anything_else(where: str, value: object) -> None:
    data = changed(where, value)
    with contextlib.suppress(Corrupt):
        assert decode(data, KEYS).keys == KEYS


@pytest.mark.parametrize(
    "bad", ["", "..", "vm-0123456789AB", "snap-0123456789ab", "vm-0123456789ab/", "vm-0123456789ab\n"]
)
def test_ids_become_keys_only_if_they_are_ids(bad: str) -> None:
    with pytest.raises(Invalid):
        SnapshotKeys(bad, KEYS.snapshot_id)
    with pytest.raises(Invalid):
        SnapshotKeys(KEYS.vm_id, bad.replace("snap", "vm"))


def test_keys_know_their_snapshot() -> None:
    assert keys_of(KEYS.manifest) == keys_of(KEYS.pack("memory", 12)) == KEYS
    assert (KEYS.memory, KEYS.state, KEYS.disk) == tuple(KEYS.prefix + name for name in ("memory", "state", "disk"))
    for key in ("snapshots/x", KEYS.prefix + "a/b", KEYS.manifest.replace("vm-", "mv-"), KEYS.prefix.rstrip("/")):
        assert keys_of(key) is None


@given(st.integers(0, 2**40))
def test_a_stream_never_has_too_many_blocks(size: int) -> None:
    block = block_bytes_for(size)
    assert -(-size // block) <= MAX_BLOCKS
    assert block == BLOCK_BYTES or size > block // 2 * MAX_BLOCKS
