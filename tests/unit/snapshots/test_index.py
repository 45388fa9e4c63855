"""The arrays agree with dictionaries."""

from __future__ import annotations

from typing import Final

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hatchvm.snapshots.index import NONE, Index, distinct, slots_of
from hatchvm.snapshots.manifest import FRAME, Pack
from hatchvm.snapshots.pack import Tail, digests_of
from hatchvm.snapshots.seal import OPEN

BLOCK: Final = 64 * 1024  # 4 blocks a frame
#: Few values, so that they are often equal, in their first 8 bytes alone or in all but the last.
digest = st.builds(
    lambda *parts: b"".join(part.to_bytes(8, "little") for part in parts),
    st.sampled_from([0, 1, 2, 2**64 - 1]),
    st.sampled_from([0, 1, 2**63]),
    st.sampled_from([0, 1]),
)
digests = st.lists(digest, max_size=40)
#: A pack: its frames, each a list of its blocks' digests.
packs = st.lists(st.lists(st.lists(digest, min_size=1, max_size=4), min_size=1, max_size=4), max_size=4)


def known(content: list[list[list[bytes]]], block_bytes: int = BLOCK) -> list[tuple[Pack, Tail]]:
    made = []
    for number, frames in enumerate(content):
        table = np.zeros(len(frames), FRAME)
        table["blocks"] = [len(blocks) for blocks in frames]
        table["offset"] = range(len(frames))
        joined = b"".join(block for blocks in frames for block in blocks)
        made.append((Pack(f"{number:032x}", 1, OPEN), Tail(block_bytes, table, digests_of(joined))))
    return made


@settings(deadline=None)
@given(digests)
def test_distinct_is_what_a_dictionary_says(content: list[bytes]) -> None:
    firsts: dict[bytes, int] = {}
    for number, one in enumerate(content):
        firsts.setdefault(one, number)
    found, which = distinct(digests_of(b"".join(content)))
    assert found.tolist() == list(firsts.values())
    assert [content[found[number]] for number in which] == content


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), max_size=20))
def test_slots_count_the_places_of_frames(blocks: list[int]) -> None:
    frames = np.zeros(len(blocks), FRAME)
    frames["blocks"] = blocks
    expected = [frame * 4 + place for frame, count in enumerate(blocks) for place in range(count)]
    assert slots_of(frames, 4).tolist() == expected


@settings(deadline=None)
@given(content=packs, wanted=digests)
def test_a_block_is_found_where_it_lies_or_not_at_all(content: list[list[list[bytes]]], wanted: list[bytes]) -> None:
    index = Index(known(content), BLOCK)
    frames = [blocks for pack in content for blocks in pack]
    everything = [block for blocks in frames for block in blocks]
    places = {block: (f, p) for f in reversed(range(len(frames))) for p, block in reversed([*enumerate(frames[f])])}
    found = index.find(digests_of(b"".join(wanted)))
    for one, slot in zip(wanted, found.tolist(), strict=True):
        rivals = {other for other in everything if other[:8] == one[:8]}
        if slot == NONE:
            assert one not in places or len(rivals) > 1  # stored once more: never wrong, and it never happens
        else:
            assert divmod(slot, 4) == places[one]
    assert [index.packs[row["pack"]].id for row in index.frames] == [
        f"{number:032x}" for number, pack in enumerate(content) for _ in pack
    ]


@settings(deadline=None)
@given(content=packs, wanted=digests)
def test_what_is_used_is_all_that_is_kept(content: list[list[list[bytes]]], wanted: list[bytes]) -> None:
    index = Index(known(content), BLOCK)
    found = index.find(digests_of(b"".join(wanted)))
    kept_packs, kept_frames, slots = index.used(found)
    assert len(kept_frames) == len({slot // 4 for slot in found.tolist() if slot != NONE})
    assert {pack.id for pack in kept_packs} == {kept_packs[row["pack"]].id for row in kept_frames}
    assert len(kept_packs) == len({pack.id for pack in kept_packs})
    for before, after in zip(found.tolist(), slots.tolist(), strict=True):
        if before == NONE:
            assert after == NONE
            continue
        old, new = index.frames[before // 4], kept_frames[after // 4]
        assert before % 4 == after % 4
        assert index.packs[old["pack"]] == kept_packs[new["pack"]]
        assert old["offset"] == new["offset"]


@settings(deadline=None)
@given(
    content=packs, lie=st.none() | st.sampled_from(["offset", "length", "blocks", "codec", "digest"]), data=st.data()
)
def test_a_frame_is_taken_for_another_only_if_all_of_it_is_the_same(
    content: list[list[list[bytes]]], lie: str | None, data: st.DataObject
) -> None:
    index = Index(known(content), BLOCK)
    theirs = [*reversed(index.packs), Pack("f" * 32, 1, OPEN)]  # a manifest has its packs in an order of its own
    frames = np.concatenate([index.frames, index.frames[:1]])
    frames["pack"] = [*(len(index.packs) - 1 - index.frames["pack"].astype(int)), *[len(index.packs)] * bool(content)]
    expected = [*range(len(index.frames)), *[NONE] * bool(content)]
    if lie and content:
        which = data.draw(st.integers(0, len(frames) - 1))
        frames[lie][which] = 77
        expected[which] = NONE
    assert index.numbers(theirs, frames).tolist() == expected


def test_packs_of_another_block_size_are_left_out() -> None:
    index = Index(known([[[bytes(24)]]], BLOCK * 2), BLOCK)
    assert index.packs == []
    assert index.find(digests_of(bytes(24))).tolist() == [NONE]
