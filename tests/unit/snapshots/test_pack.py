"""A pack's tail tells what is in it, or nothing: what it says would be referred to by every later snapshot."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from hatchvm.base.errors import Corrupt, HatchError, Unsupported
from hatchvm.snapshots.manifest import FRAME, Pack
from hatchvm.snapshots.pack import Tail, build, parse_end, parse_tail, tail_start
from hatchvm.snapshots.seal import OPEN, Ring
from hatchvm.testing.sleeper import BLOCK, piece
from hatchvm.testing.sleeper import FRAME as FRAME_BYTES

ID: Final = "0123456789abcdef" * 2
RING: Final = Ring([bytes(range(32))])
FOOT: Final = struct.Struct("<8sH8sIII32s")


def frame(plain: bytes) -> tuple[bytes, bytes]:
    blocks = [plain[at : at + BLOCK] for at in range(0, len(plain), BLOCK)]
    return plain, b"".join(blake3(block).digest(24) for block in blocks)


CONTENT: Final = [frame(piece(FRAME_BYTES, "text")), frame(piece(FRAME_BYTES, "1")), frame(piece(3 * BLOCK, "2"))]


def made(ring: Ring) -> tuple[Pack, Tail, bytes, bytes]:
    return build(ID, CONTENT, BLOCK, ring)


@pytest.mark.parametrize("ring", [Ring(), RING], ids=["open", "sealed"])
def test_the_end_of_a_pack_tells_what_is_in_it(ring: Ring) -> None:
    pack, tail, data, stored = made(ring)
    assert pack == Pack(ID, len(data), ring.current)
    assert data.endswith(stored)
    for end in (stored, data[tail_start(pack) :], data):
        read, kept = parse_tail(end, pack, ring)
        assert kept == stored
        assert read.block_bytes == tail.block_bytes == BLOCK
        assert read.frames.tobytes() == tail.frames.tobytes()
        assert read.frames["blocks"].tolist() == [64, 64, 3]
        assert read.digests.tobytes() == tail.digests.tobytes() == b"".join(digests for _, digests in CONTENT)


def test_the_end_of_a_pack_is_as_long_as_it_was() -> None:
    pack, _, data, stored = made(Ring())
    end = data[tail_start(pack) :]
    assert parse_end(end, pack, Ring())[1] == stored
    for other in (end[1:], b"\0" + end, data + data):
        with pytest.raises(Corrupt, match=ID):
            parse_end(other, pack, Ring())


@pytest.mark.parametrize("ring", [Ring(), RING], ids=["open", "sealed"])
def test_no_bit_of_a_tail_can_change_unnoticed(ring: Ring) -> None:
    pack, _, _, stored = made(ring)
    for position in range(0, len(stored)):
        damaged = bytearray(stored)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(Corrupt, match=ID):
            parse_tail(bytes(damaged), pack, ring)


@pytest.mark.parametrize("ring", [Ring(), RING], ids=["open", "sealed"])
def test_the_tail_of_another_pack_is_refused(ring: Ring) -> None:
    pack, _, _, stored = made(ring)
    for other in (replace(pack, id="f" * 32), replace(pack, size=pack.size + 1), replace(pack, size=pack.size - 1)):
        with pytest.raises(Corrupt, match=other.id):
            parse_tail(stored, other, ring)


def test_a_tail_under_another_key_than_its_manifest_says_is_refused() -> None:
    pack, _, _, stored = made(RING)
    with pytest.raises(Corrupt):
        parse_tail(stored, replace(pack, key_id=OPEN), RING)
    with pytest.raises(Unsupported, match=RING.current.hex()):
        parse_tail(stored, pack, Ring())


def test_a_sealed_tail_hides_what_is_in_the_pack() -> None:
    _, tail, data, _ = made(RING)
    assert CONTENT[1][0][:64] not in data
    assert tail.digests.tobytes()[:24] not in data
    assert tail.frames.tobytes()[:24] not in data


GOOD: Final = [(0, 0, 100, 3, 1, bytes(32)), (0, 100, 2 * BLOCK, 2, 0, bytes(32))]


def tail_of(
    rows: list[Any], *, blocks: int = 5, block_bytes: int = BLOCK, frames: int | None = None, version: int = 2
) -> tuple[bytes, Pack]:
    """A tail with a right digest, made without the code under test, and a pack that is as long as its frames need."""
    dtype = [(name, FRAME[name] if name != "digest" else "V32") for name in FRAME.names or ()]
    listing = np.array(rows, dtype).tobytes() + bytes(24 * blocks)
    facts = (b"HATCHPAK", version, OPEN, block_bytes, len(rows) if frames is None else frames, len(listing))
    check = blake3(listing + FOOT.pack(*facts, bytes(32)) + ID.encode()).digest()
    stored = listing + FOOT.pack(*facts, check)
    return stored, Pack(ID, sum(row[2] for row in rows) + len(stored), OPEN)


def changed(row: int, column: int, value: int) -> list[Any]:
    rows = [list(one) for one in GOOD]
    rows[row][column] = value
    return [tuple(one) for one in rows]


def test_a_tail_made_by_hand_is_read() -> None:
    stored, pack = tail_of(GOOD)
    assert parse_tail(stored, pack, Ring())[0].frames["offset"].tolist() == [0, 100]


def test_a_newer_tail_is_told_from_damage() -> None:
    stored, pack = tail_of(GOOD, version=3)
    with pytest.raises(Unsupported, match=f"pack {ID} has format 3, this hatchvm reads format 2"):
        parse_tail(stored, pack, Ring())


HOSTILE: Final[dict[str, Callable[[], tuple[bytes, Pack]]]] = {
    "another pack's frame": lambda: tail_of(changed(0, 0, 1)),
    "a gap before the first": lambda: tail_of(changed(0, 1, 1)),
    "a gap": lambda: tail_of(changed(1, 1, 101)),
    "an overlap": lambda: tail_of(changed(1, 1, 99)),
    "nothing stored": lambda: tail_of(changed(0, 2, 0)),
    "longer than plain": lambda: tail_of([(0, 0, 3 * BLOCK, 3, 1, bytes(32))], blocks=3),
    "no blocks": lambda: tail_of(changed(0, 3, 0), blocks=2),
    "too many blocks": lambda: tail_of(changed(0, 3, 65), blocks=67),
    "another codec": lambda: tail_of(changed(0, 4, 2)),
    "another size as it is": lambda: tail_of(changed(1, 2, 2 * BLOCK - 1)),
    "too few digests": lambda: tail_of(GOOD, blocks=4),
    "too many digests": lambda: tail_of(GOOD, blocks=6),
    "no frames": lambda: tail_of([], blocks=0),
    "too many frames": lambda: tail_of([(0, n, 1, 1, 1, bytes(32)) for n in range(65)], blocks=65),
    "more frames than there are": lambda: tail_of(GOOD, frames=9),
    "frames beyond number": lambda: tail_of(GOOD, frames=2**32 - 1),
    "an odd block size": lambda: tail_of(GOOD, block_bytes=4097),
    "no block size": lambda: tail_of(GOOD, block_bytes=0),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_a_tail_that_cannot_be_is_corrupt(make: Callable[[], tuple[bytes, Pack]]) -> None:
    stored, pack = make()
    with pytest.raises(Corrupt):
        parse_tail(stored, pack, Ring())


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_whatever_raise_anything_else(data: bytes) -> None:
    stored, pack = tail_of(GOOD)
    for attempt in (data, data + stored[-FOOT.size :], stored + data[:1] if data else b""):
        with pytest.raises(HatchError):
            parse_tail(attempt, pack, Ring())
