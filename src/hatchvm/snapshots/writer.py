"""Storing files: look at every block, leave out zeros and what the store has, pack the rest.

Two passes. The first hashes every block of every file; then it is known which are new, and the second reads only those,
compresses them in frames and puts them in packs. A block that changed between the two (nobody may write) is noticed.
Where it is known which pages of the memory changed since a snapshot, the first pass looks at those only.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hatchvm.base.errors import Conflict
from hatchvm.ports.objects import ObjectStore
from hatchvm.snapshots.index import NONE, Index, Places, distinct
from hatchvm.snapshots.layout import FRAME_BYTES, PACK_FRAMES, block_bytes_for, pack_key
from hatchvm.snapshots.local import Source, opened
from hatchvm.snapshots.manifest import FRAME, Frames, Pack, Stream
from hatchvm.snapshots.pack import Tail, build
from hatchvm.snapshots.scan import Scan, Sums, scan
from hatchvm.snapshots.seal import Ring
from hatchvm.snapshots.since import Base
from hatchvm.snapshots.workers import Stop, Workers, run_all

#: Two packs being filled and one on its way to the store.
_WIDTH: Final = 3

#: Told of every pack once it is stored, with its tail's stored form.
OnStored = Callable[[Pack, bytes], None]


@dataclass(frozen=True, slots=True, eq=False)
class Content:
    """What a manifest says of stored files."""

    block_bytes: int
    packs: tuple[Pack, ...]
    frames: Frames
    streams: tuple[Stream, ...]
    added_bytes: int


class Writer:
    """Stores the streams of one snapshot."""

    def __init__(self, store: ObjectStore, workers: Workers, ring: Ring, domain: str) -> None:
        self._store = store
        self._workers = workers
        self._ring = ring
        self._domain = domain

    async def write(
        self, files: dict[str, Path], known: Sequence[tuple[Pack, Tail]], base: Base | None, on_stored: OnStored
    ) -> Content:
        """Store what is new of every file (stream name -> path, the memory first). `known`: what the store has, the
        best first. `base`: whose blocks the memory still has where it did not change.

        Ended early, packs may be left in the store.
        """
        with ExitStack() as stack:
            sources = [stack.enter_context(opened(name, path)) for name, path in files.items()]
            plan = await self._workers.run(partial(_plan, sources, known, base))
            packs, frames = await self._store_new(plan, on_stored)
        return plan.content(packs, frames)

    async def _store_new(self, plan: _Plan, on_stored: OnStored) -> tuple[list[Pack], list[Frames]]:
        """The new packs and their frames, in the order of the plan."""
        made: dict[int, tuple[Pack, Frames]] = {}

        async def store(number: int) -> None:
            pack_id = secrets.token_hex(16)
            pack, tail, data, stored_tail = await self._workers.run(
                lambda stop: build(pack_id, plan.frames_of(number, stop), plan.block_bytes, self._ring)
            )
            await self._store.put(pack_key(self._domain, pack.id), data)
            on_stored(pack, stored_tail)
            made[number] = pack, tail.frames

        jobs: Iterator[Coroutine[Any, Any, None]] = (store(number) for number in range(plan.new_packs))
        await run_all(jobs, width=_WIDTH, name="store packs")
        in_order = [made[number] for number in range(plan.new_packs)]
        return [pack for pack, _ in in_order], [frames for _, frames in in_order]


def _plan(sources: Sequence[Source], known: Sequence[tuple[Pack, Tail]], base: Base | None, stop: Stop) -> _Plan:
    """What to store. In one piece, so that what is only needed to find out is freed."""
    block_bytes = block_bytes_for([source.size for source in sources])
    sums, index = Sums(block_bytes), Index(known, block_bytes)
    memory = sources[0]
    kept = np.zeros(0, np.int64) if base is None else base.places(memory.size, block_bytes, index)
    seen = scan(sources, block_bytes, sums, stop, {memory.name: kept == NONE} if base else {})
    return _Plan(sources, seen, index, kept, sums)


class _Plan:
    """Which blocks are new, and where every block will lie."""

    def __init__(self, sources: Sequence[Source], seen: Scan, index: Index, kept: Places, sums: Sums) -> None:
        """`kept`: see `Base.places`; empty if there is no base."""
        self.block_bytes = index.block_bytes
        self._frame_slots = index.frame_slots
        self._sources = sources
        self._sums = sums
        found = index.find(seen.digests)
        unknown = np.flatnonzero(found == NONE)
        firsts, which = distinct(seen.digests[unknown])
        unseen = np.flatnonzero(kept >= 0)
        self._packs, self._frames, slots = index.used(np.concatenate([found, kept[unseen]]))
        slots[unknown] = len(self._frames) * self._frame_slots + which
        self._streams = [
            _stream(source, blocks, part, self.block_bytes)
            for source, blocks, part in zip(
                sources,
                np.split(seen.blocks, seen.ends[:-1]),
                np.split(slots[: len(found)], seen.ends[:-1]),
                strict=True,
            )
        ]
        self._streams[0].slots[unseen] = slots[len(found) :] + 1
        new = unknown[firsts]
        self._new_source = np.searchsorted(seen.ends, new, side="right").astype(np.uint8)
        self._new_block, self._new_digest, self._new_sum = seen.blocks[new], seen.digests[new], seen.sums[new]

    @property
    def new_packs(self) -> int:
        return -(-len(self._new_block) // (PACK_FRAMES * self._frame_slots))

    def frames_of(self, pack: int, stop: Stop) -> Iterator[tuple[memoryview, bytes]]:
        """The frames of one new pack: their plain bytes, until the next is asked for, and the digests of their blocks.

        Raises Conflict.
        """
        room = memoryview(bytearray(FRAME_BYTES))
        begin = pack * PACK_FRAMES * self._frame_slots
        end = min(begin + PACK_FRAMES * self._frame_slots, len(self._new_block))
        for first in range(begin, end, self._frame_slots):
            if stop.is_set():
                return
            yield self._frame(slice(first, min(first + self._frame_slots, end)), room)

    def _frame(self, new: slice, room: memoryview) -> tuple[memoryview, bytes]:
        blocks, sources = self._new_block[new], self._new_source[new]
        plain = room[: len(blocks) * self.block_bytes]
        breaks = np.flatnonzero(np.diff(sources)) + 1
        for begin, end in pairwise([0, *breaks.tolist(), len(blocks)]):
            piece = plain[begin * self.block_bytes : end * self.block_bytes]
            self._sources[sources[begin]].read_blocks(piece, blocks[begin:end], self.block_bytes)
        if (self._sums.of(plain) != self._new_sum[new]).any():
            raise Conflict("a file of the snapshot changed while it was being stored")
        return plain, self._new_digest[new].astype("<u8", copy=False).tobytes()

    def content(self, new_packs: Sequence[Pack], new_frames: Sequence[Frames]) -> Content:
        """The tables, with those frames of the index that are used and the new ones."""
        new = np.concatenate([np.zeros(0, FRAME), *new_frames])
        new["pack"] = len(self._packs) + np.repeat(np.arange(len(new_packs)), [len(one) for one in new_frames])
        return Content(
            block_bytes=self.block_bytes,
            packs=(*self._packs, *new_packs),
            frames=np.concatenate([self._frames, new]),
            streams=tuple(self._streams),
            added_bytes=sum(pack.size for pack in new_packs),
        )


def _stream(source: Source, blocks: npt.NDArray[np.uint32], slots: Places, block_bytes: int) -> Stream:
    table = np.zeros(-(-source.size // block_bytes), np.uint32)
    table[blocks] = slots + 1
    return Stream(source.name, source.size, table)
