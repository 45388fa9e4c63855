"""Reads bring every frame that is wanted, and every block gets to its places."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hatchvm.snapshots.frames import Placement, frames_of, ranges
from hatchvm.snapshots.manifest import FRAME, Manifest, Pack, Stream
from hatchvm.snapshots.seal import OPEN
from hatchvm.testing.sleeper import CREATED_AT
from hatchvm.testing.vmm import STAMP

BLOCK: Final = 64 * 1024  # 4 blocks a frame
GAP: Final = 64 * 1024
LIMIT: Final = 2 * 262_144

#: For every frame: its pack, the gap before it, its length.
tables = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from([0, 1, GAP, GAP + 1]), st.sampled_from([1, 1000, 262_144])),
    min_size=1,
    max_size=50,
)


def manifest_of(rows: list[tuple[int, int, int]], slots: list[int]) -> Manifest:
    frames = np.zeros(len(rows), FRAME)
    ends = [0, 0, 0]
    for number, (pack, gap, length) in enumerate(rows):
        frames[number] = (pack, ends[pack] + gap, length, 4, 1, 0)
        ends[pack] += gap + length
    stream = Stream("memory", BLOCK * len(slots), np.array(slots, np.uint32))
    return Manifest(
        snapshot_id="snap-0123456789ab",
        vm_id="vm-0123456789ab",
        created_at=CREATED_AT,
        stamp=STAMP,
        vm_config="{}",
        block_bytes=BLOCK,
        packs=tuple(Pack(f"{n:032x}", 2**24, OPEN) for n in range(3)),
        frames=frames,
        streams=(stream, Stream("state", 0, np.zeros(0, np.uint32))),
        order=np.zeros(0, np.uint32),
        added_bytes=0,
    )


@settings(deadline=None)
@given(rows=tables, data=st.data())
def test_ranges_bring_every_frame_once(rows: list[tuple[int, int, int]], data: st.DataObject) -> None:
    manifest = manifest_of(rows, [])
    wanted = sorted(data.draw(st.sets(st.integers(0, len(rows) - 1))))
    made = list(ranges(manifest, np.array(wanted, np.int64), limit=LIMIT))
    assert sorted(number for one in made for number in one.frames) == wanted
    for one in made:
        mine = [manifest.frames[number] for number in one.frames]
        assert {int(row["pack"]) for row in mine} == {one.pack}
        spans = [(int(row["offset"]), int(row["offset"]) + int(row["length"])) for row in mine]
        assert (one.start, one.start + one.length) == (spans[0][0], spans[-1][1])
        assert one.length <= LIMIT
        assert all(0 <= after[0] - before[1] <= GAP for before, after in pairwise(spans))
    for before, after in pairwise(made):  # none could have been joined
        whole = after.start + int(manifest.frames[after.frames[0]]["length"]) - before.start
        gap = after.start - before.start - before.length
        assert before.pack != after.pack or gap > GAP or whole > LIMIT


slot_lists = st.lists(st.one_of(st.just(0), st.integers(1, 20)), max_size=40)


@settings(deadline=None)
@given(slots=slot_lists, more=slot_lists)
def test_frames_of_streams_are_those_of_their_blocks(slots: list[int], more: list[int]) -> None:
    manifest = manifest_of([(0, 0, 1)] * 5, slots)
    other = replace(manifest.streams[0], slots=np.array(more, np.uint32))
    expected = sorted({(slot - 1) // 4 for slot in [*slots, *more] if slot})
    assert frames_of(manifest, [manifest.streams[0], other]).tolist() == expected


@settings(deadline=None)
@given(slots=slot_lists)
def test_every_block_gets_what_its_slot_says(slots: list[int]) -> None:
    manifest = manifest_of([(0, 0, 1)] * 5, slots)
    placement = Placement(manifest, manifest.streams[0])
    filled = [0] * len(slots)
    for frame in range(5):
        covered: list[Any] = []
        for block, place, count in placement.runs(frame):
            assert count > 0
            for n in range(count):
                assert not filled[block + n]
                filled[block + n] = frame * 4 + place + n + 1
            covered.append((block, place, count))
        for (block, place, count), (after, its_place, _) in pairwise(covered):
            assert (block + count, place + count) != (after, its_place)  # else one write would have done
    assert filled == slots
