"""From a manifest's tables to reads of the store, and from what was read to the blocks of a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from hatchvm.base.errors import Corrupt
from hatchvm.base.units import MIB
from hatchvm.snapshots.codec import Codec, decode, digest
from hatchvm.snapshots.layout import pack_key
from hatchvm.snapshots.manifest import Manifest, Stream
from hatchvm.snapshots.seal import Ring, Sealer

MAX_RANGE_BYTES: Final = 4 * MIB
#: Reading this much too much is cheaper than another request.
_GAP_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Range:
    """One read: bytes of a pack (an index into `Manifest.packs`) and the frames in them."""

    pack: int
    start: int
    length: int
    frames: tuple[int, ...]


def frames_of(manifest: Manifest, streams: Iterable[Stream]) -> npt.NDArray[np.int64]:
    """The frames that hold blocks of these streams, ascending."""
    used = [
        np.unique((stream.slots[stream.slots > 0].astype(np.int64) - 1) // manifest.frame_slots) for stream in streams
    ]
    return np.unique(np.concatenate([np.zeros(0, np.int64), *used]))


def ranges(manifest: Manifest, frames: npt.NDArray[np.int64], *, limit: int = MAX_RANGE_BYTES) -> Iterator[Range]:
    """Reads of at most `limit` bytes that together bring these frames, pack by pack."""
    table = manifest.frames
    by_place = frames[np.lexsort((table["offset"][frames], table["pack"][frames]))]
    batch: list[int] = []
    for number in by_place.tolist():
        if batch and not _fits(manifest, batch, number, limit):
            yield _range(manifest, batch)
            batch = []
        batch.append(number)
    if batch:
        yield _range(manifest, batch)


def _fits(manifest: Manifest, batch: list[int], number: int, limit: int) -> bool:
    first, last, new = manifest.frames[batch[0]], manifest.frames[batch[-1]], manifest.frames[number]
    gap = int(new["offset"]) - int(last["offset"]) - int(last["length"])
    whole = int(new["offset"]) + int(new["length"]) - int(first["offset"])
    return bool(new["pack"] == first["pack"]) and gap <= _GAP_BYTES and whole <= limit


def _range(manifest: Manifest, batch: list[int]) -> Range:
    first, last = manifest.frames[batch[0]], manifest.frames[batch[-1]]
    start = int(first["offset"])
    return Range(int(first["pack"]), start, int(last["offset"]) + int(last["length"]) - start, tuple(batch))


class Opener:
    """Verifies and unpacks frames of one manifest. For many threads at once."""

    def __init__(self, manifest: Manifest, ring: Ring) -> None:
        self._manifest = manifest
        self._ring = ring
        self._sealers: dict[int, Sealer | None] = {}

    def open(self, frame: int, stored: memoryview) -> bytes:
        """The plain blocks of a frame, end to end. Raises Corrupt naming the pack, Unsupported for a lost key."""
        row = self._manifest.frames[frame]
        pack = self._manifest.packs[int(row["pack"])]
        try:
            if len(stored) != row["length"] or digest(stored) != row["digest"].tobytes():
                raise ValueError("it is not what was stored")
            sealer = self._sealer(int(row["pack"]))
            packed = stored if sealer is None else sealer.open(int(row["offset"]), stored)
            return decode(Codec(int(row["codec"])), packed, int(row["blocks"]) * self._manifest.block_bytes)
        except ValueError as error:
            key = pack_key(self._manifest.domain, pack.id)
            raise Corrupt(f"the snapshot is damaged: frame {frame} in {key}", detail=str(error)) from error

    def _sealer(self, pack: int) -> Sealer | None:
        if pack not in self._sealers:
            entry = self._manifest.packs[pack]
            self._sealers[pack] = self._ring.sealer(entry.key_id, entry.id.encode())
        return self._sealers[pack]


class Placement:
    """Where the blocks of every frame belong in one stream; a block may belong in many places, or in none."""

    def __init__(self, manifest: Manifest, stream: Stream) -> None:
        self._frame_slots = manifest.frame_slots
        used = np.flatnonzero(stream.slots)
        slots = stream.slots[used].astype(np.int64) - 1
        order = np.argsort(slots, kind="stable")
        self._slots = slots[order]
        self._blocks = used[order]

    def of(self, frame: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(blocks of the stream, their places in the frame)."""
        bounds = np.searchsorted(self._slots, [frame * self._frame_slots, (frame + 1) * self._frame_slots])
        which = slice(int(bounds[0]), int(bounds[1]))
        return self._blocks[which], self._slots[which] - frame * self._frame_slots

    def runs(self, frame: int) -> Iterator[tuple[int, int, int]]:
        """(first block, first place, blocks) of stretches that are whole in both."""
        blocks, places = self.of(frame)
        by_block = np.argsort(blocks, kind="stable")
        blocks, places = blocks[by_block], places[by_block]
        breaks = np.flatnonzero((np.diff(blocks) != 1) | (np.diff(places) != 1)) + 1
        for begin, end in zip([0, *breaks.tolist()], [*breaks.tolist(), len(blocks)], strict=True):
            if end > begin:
                yield int(blocks[begin]), int(places[begin]), end - begin
