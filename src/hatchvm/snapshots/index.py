"""Which blocks are in the store already: sorted arrays, 40 bytes a block, built anew for every snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from hatchvm.snapshots.layout import FRAME_BYTES
from hatchvm.snapshots.manifest import FRAME, Frames, Pack
from hatchvm.snapshots.pack import Digests, Tail, digests_of

#: "Nowhere", among numbers of slots.
NONE: Final = -1
Places = npt.NDArray[np.int64]


class Index:
    """Digest of a block -> its slot (frame * blocks a frame + place) in the table `frames`.

    Of a block that lies in several packs the first one is taken, so give those of the VM's own last snapshot first.
    """

    def __init__(self, known: Sequence[tuple[Pack, Tail]], block_bytes: int) -> None:
        self.block_bytes = block_bytes
        self.frame_slots = FRAME_BYTES // block_bytes
        usable = [(pack, tail) for pack, tail in known if tail.block_bytes == block_bytes]
        self.packs = [pack for pack, _ in usable]
        self.frames: Frames = np.concatenate([np.zeros(0, FRAME), *(tail.frames for _, tail in usable)])
        self.frames["pack"] = np.repeat(np.arange(len(usable)), [len(tail.frames) for _, tail in usable])
        self._digests: Digests = np.concatenate([digests_of(b""), *(tail.digests for _, tail in usable)])
        self._slots = slots_of(self.frames, self.frame_slots)
        self._order = np.argsort(self._digests[:, 0], kind="stable").astype(np.uint32)
        self._keys = self._digests[self._order, 0]

    def find(self, digests: Digests) -> Places:
        """The slot of every block, NONE where it is not known."""
        found = np.full(len(digests), NONE, np.int64)
        if not len(self._keys):
            return found
        at = np.searchsorted(self._keys, digests[:, 0])
        at[at == len(self._keys)] = 0
        candidates = self._order[at]
        same = np.ones(len(digests), bool)
        for column in range(digests.shape[1]):  # one by one: it takes less memory
            same &= self._digests[candidates, column] == digests[:, column]
        found[same] = self._slots[candidates[same]]
        return found

    def numbers(self, packs: Sequence[Pack], frames: Frames) -> Places:
        """For each of a manifest's frames its number in `frames`, NONE where that frame is not here, or another one."""
        numbers = {pack.id: number for number, pack in enumerate(self.packs)}
        wanted = _ranks(np.array([numbers.get(pack.id, NONE) for pack in packs], np.int64)[frames["pack"]], frames)
        ranks = _ranks(self.frames["pack"].astype(np.int64), self.frames)
        at = np.searchsorted(ranks, wanted)
        same = at < len(ranks)
        at[~same] = 0
        if same.any():
            same &= ranks[at] == wanted
            for name in ("length", "blocks", "codec", "digest"):
                same &= (self.frames[name][at] == frames[name]).reshape(len(frames), -1).all(axis=1)
        return np.where(same, at, NONE)

    def used(self, found: Places) -> tuple[list[Pack], Frames, Places]:
        """The packs and frames that hold these slots, and `found` in terms of those frames."""
        known = found != NONE
        is_used = np.zeros(len(self.frames), bool)
        is_used[found[known] // self.frame_slots] = True
        skipped = np.arange(len(self.frames)) - np.cumsum(is_used) + 1  # of a used frame: how many before it are not
        table = self.frames[is_used]
        packs, table["pack"] = np.unique(table["pack"], return_inverse=True)
        slots = found.copy()
        slots[known] -= skipped[found[known] // self.frame_slots] * self.frame_slots
        return [self.packs[number] for number in packs.tolist()], table, slots


def _ranks(packs: Places, frames: Frames) -> Places:
    """Of frames in these packs: numbers that ascend as frames do in an index."""
    ranks: Places = packs << 32 | frames["offset"]
    return ranks


def slots_of(frames: Frames, frame_slots: int) -> Places:
    """The slot of every block in the frames, in order."""
    blocks = frames["blocks"].astype(np.int64)
    begin = np.arange(len(frames), dtype=np.int64) * frame_slots
    first = np.cumsum(blocks) - blocks
    return np.repeat(begin - first, blocks) + np.arange(int(blocks.sum()), dtype=np.int64)


def distinct(digests: Digests) -> tuple[Places, Places]:
    """(indexes of the first of every distinct digest, ascending; for every digest, which of those it equals)."""
    if not len(digests):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    order = np.lexsort(digests.T)  # stable: of equal ones the first comes first
    fresh = np.zeros(len(digests), bool)
    fresh[0] = True
    for column in digests.T:
        fresh[1:] |= column[order[1:]] != column[order[:-1]]
    firsts = order[fresh]
    rank = np.empty(len(firsts), np.int64)
    rank[np.argsort(firsts)] = np.arange(len(firsts))
    which = np.empty(len(digests), np.int64)
    which[order] = rank[np.cumsum(fresh) - 1]
    return np.sort(firsts), which
