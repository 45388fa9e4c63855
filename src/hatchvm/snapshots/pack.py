"""One pack: an object of frames end to end, and a tail that says what they hold.

The tail lists the frames and a digest of every block in them. A reader never needs it, the manifest tells more; it is
for whoever stores the next snapshot and wants to know what is there already. Tails are kept on this host, too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from hatchvm.base.errors import Corrupt, Unsupported
from hatchvm.snapshots.codec import Encoder, digest
from hatchvm.snapshots.layout import FORMAT, FRAME_BYTES, MIN_BLOCK_BYTES, PACK_FRAMES
from hatchvm.snapshots.manifest import FRAME, Frames, Pack
from hatchvm.snapshots.parse import check_block_bytes, check_frames
from hatchvm.snapshots.seal import TAG_BYTES, Ring

#: Of a block, to recognise it: 192 bits of BLAKE3, as three numbers. Nobody finds two blocks with the same one.
DIGEST_BYTES: Final = 24
Digests = npt.NDArray[np.uint64]  # shape (blocks, 3)

#: magic, format, key id, block bytes, frames, stored length of the list, digest (see `_check`)
_FOOT: Final = struct.Struct("<8sH8sIII32s")
_MAGIC: Final = b"HATCHPAK"
#: Under a pack's key the frames are numbered by their offsets, the list by what no offset can be.
_LIST: Final = 2**32 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Tail:
    """What a pack holds: its frames (their `pack` is 0) and their blocks' digests, frame after frame."""

    block_bytes: int
    frames: Frames
    digests: Digests


def block_digest(block: bytes | memoryview) -> bytes:
    return blake3(block).digest(DIGEST_BYTES)


def digests_of(raw: bytes | bytearray) -> Digests:
    """Digests end to end, as an array."""
    return np.frombuffer(raw, "<u8").reshape(-1, DIGEST_BYTES // 8).astype(np.uint64, copy=False)


def tail_start(pack: Pack) -> int:
    """Where to begin reading a pack so as to have its tail, whatever its block size."""
    blocks = PACK_FRAMES * (FRAME_BYTES // MIN_BLOCK_BYTES)
    return max(0, pack.size - PACK_FRAMES * FRAME.itemsize - blocks * DIGEST_BYTES - TAG_BYTES - _FOOT.size)


def build(
    pack_id: str, frames: Iterable[tuple[bytes | memoryview, bytes]], block_bytes: int, ring: Ring
) -> tuple[Pack, Tail, bytes, bytes]:
    """A pack of frames, each given as (plain bytes, digests of its blocks end to end): itself, its tail, the object,
    the tail's stored form. `pack_id` must never have been used before.
    """
    sealer, encoder = ring.sealer(ring.current, pack_id.encode()), Encoder()
    pieces: list[bytes] = []
    rows: list[tuple[int, int, int, int, int, npt.NDArray[np.uint8]]] = []
    digests: list[bytes] = []
    offset = 0
    for plain, block_digests in frames:
        codec, stored = encoder.encode(plain)
        if sealer is not None:
            stored = sealer.seal(offset, stored)
        check = np.frombuffer(digest(stored), np.uint8)
        rows.append((0, offset, len(stored), len(plain) // block_bytes, codec, check))
        pieces.append(stored)
        digests.append(block_digests)
        offset += len(stored)
    table = np.array(rows, FRAME)
    tail = _seal_tail(table, b"".join(digests), block_bytes, pack_id, ring)
    data = b"".join([*pieces, tail])
    return Pack(pack_id, len(data), ring.current), Tail(block_bytes, table, digests_of(b"".join(digests))), data, tail


def _seal_tail(frames: Frames, digests: bytes, block_bytes: int, pack_id: str, ring: Ring) -> bytes:
    listing = frames.tobytes() + digests
    sealer = ring.sealer(ring.current, pack_id.encode())
    if sealer is not None:
        listing = sealer.seal(_LIST, listing)
    facts = (_MAGIC, FORMAT, ring.current, block_bytes, len(frames), len(listing))
    check = _check(listing, facts, pack_id)
    return listing + _FOOT.pack(*facts, check)


def parse_end(data: bytes, pack: Pack, ring: Ring) -> tuple[Tail, bytes]:
    """As `parse_tail`, from all that a pack has from `tail_start` on: it must be as long as it was."""
    if len(data) != pack.size - tail_start(pack):
        raise Corrupt(f"pack {pack.id} is damaged", detail="it has another length")
    return parse_tail(data, pack, ring)


def parse_tail(data: bytes, pack: Pack, ring: Ring) -> tuple[Tail, bytes]:
    """From the last bytes of a pack: its tail, and the tail's stored form.

    Raises Corrupt; Unsupported for a newer format, or a key that is not in the ring.
    """
    try:
        return _parse_tail(data, pack, ring)
    except (ValueError, struct.error) as error:
        raise Corrupt(f"pack {pack.id} is damaged", detail=str(error)) from error


def _parse_tail(data: bytes, pack: Pack, ring: Ring) -> tuple[Tail, bytes]:
    *facts, check = _FOOT.unpack(data[-_FOOT.size :])
    magic, version, key_id, block_bytes, frames, length = facts
    stored = data[-_FOOT.size - length :]
    listing = stored[: -_FOOT.size]
    if (magic, key_id) != (_MAGIC, pack.key_id) or _check(listing, facts, pack.id) != check:
        raise ValueError("its tail is not what was stored")
    if version != FORMAT:
        raise Unsupported(f"pack {pack.id} has format {version}, this hatchvm reads format {FORMAT}")
    sealer = ring.sealer(key_id, pack.id.encode())
    if sealer is not None:
        listing = sealer.open(_LIST, listing)
    if not 0 < frames <= PACK_FRAMES:
        raise ValueError("it has an impossible number of frames")
    table = np.frombuffer(listing, FRAME, count=frames)
    check_frames(table, (pack,), check_block_bytes(block_bytes))
    ends = np.cumsum(table["length"], dtype=np.int64)
    if (table["offset"] != ends - table["length"]).any() or ends[-1] + len(stored) != pack.size:
        raise ValueError("its frames do not fill it")
    digests = digests_of(listing[frames * FRAME.itemsize :])
    if len(digests) != int(table["blocks"].sum()):
        raise ValueError("its tail lists other blocks than its frames have")
    return Tail(block_bytes, table, digests), stored


def _check(listing: bytes, facts: Sequence[Any], pack_id: str) -> bytes:
    """The digest in a tail. The id is in it, so that no pack passes for another."""
    return digest(listing + _FOOT.pack(*facts, bytes(32)) + pack_id.encode())
