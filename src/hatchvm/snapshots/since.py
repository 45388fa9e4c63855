"""What a memory still has in common with a stored one: blocks that need not be read again to be known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from hatchvm.ports.vmm import Pages
from hatchvm.snapshots.index import NONE, Index, Places
from hatchvm.snapshots.layout import MIN_BLOCK_BYTES, SnapshotKeys
from hatchvm.snapshots.manifest import Manifest

#: Among places: the block is zeros.
ZEROS: Final = -2


@dataclass(frozen=True, slots=True, eq=False)
class Since:
    """Every page (4 KiB) of a memory that is not one of `pages` is what it was in that committed snapshot."""

    keys: SnapshotKeys
    pages: Pages


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """The snapshot of a `Since`, read."""

    manifest: Manifest
    pages: Pages

    def places(self, size: int, block_bytes: int, index: Index) -> Places:
        """For every block of a memory of `size` bytes: its slot in the index, ZEROS, or NONE: it must be looked at.

        A block has a slot only where the index has the very frame in which the snapshot finds it.
        """
        memory = self.manifest.streams[0]
        if (memory.size, self.manifest.block_bytes) != (size, block_bytes):
            return np.full(-(-size // block_bytes), NONE, np.int64)
        frames, place = np.divmod(memory.slots.astype(np.int64) - 1, self.manifest.frame_slots)
        here = np.append(index.numbers(self.manifest.packs, self.manifest.frames), NONE)[frames]  # zeros: frame -1
        places = np.where(here == NONE, NONE, here * self.manifest.frame_slots + place)
        places[memory.slots == 0] = ZEROS
        changed = self.pages // np.uint32(block_bytes // MIN_BLOCK_BYTES)
        places[changed[changed < len(places)]] = NONE
        return places
