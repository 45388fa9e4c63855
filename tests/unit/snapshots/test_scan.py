"""The first look sees every block that is not zeros, and nothing else."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from hatchvm.snapshots import scan as scan_module
from hatchvm.snapshots.local import opened
from hatchvm.snapshots.scan import Scan, Sums, scan
from hatchvm.testing.sleeper import BLOCK, Piece, sparse

pieces = st.lists(
    st.tuples(st.integers(0, 30 * BLOCK), st.integers(1, 9 * BLOCK), st.sampled_from(["zero", "text", "1"])), max_size=5
)
files = st.lists(st.tuples(st.integers(0, 33 * BLOCK), pieces), min_size=1, max_size=3)


def seen(folder: Path, content: list[tuple[int, list[Piece]]], block_bytes: int, sums: Sums) -> Scan:
    with ExitStack() as stack:
        sources = []
        for number, (size, written) in enumerate(content):
            sparse(folder / str(number), size, written)
            sources.append(stack.enter_context(opened("memory", folder / str(number))))
        return scan(sources, block_bytes, sums, threading.Event())


@settings(max_examples=60, deadline=None)
@given(content=files, block_bytes=st.sampled_from([BLOCK, 4 * BLOCK]), window=st.sampled_from([1, 7, 1024]))
def test_it_finds_what_a_plain_loop_finds(
    content: list[tuple[int, list[Piece]]], block_bytes: int, window: int
) -> None:
    sums = Sums(block_bytes)
    expected, ends = [], []
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan_module, "_WINDOW_BYTES", window * block_bytes)
        found = seen(Path(name), content, block_bytes, sums)
        for number in range(len(content)):
            data = (Path(name) / str(number)).read_bytes()
            data += bytes(-len(data) % block_bytes)
            for at in range(0, len(data), block_bytes):
                block = data[at : at + block_bytes]
                if any(block):
                    expected.append((at // block_bytes, blake3(block).digest(24), int(sums.of(memoryview(block))[0])))
            ends.append(len(expected))
    digests = [row.tobytes() for row in found.digests]
    assert list(zip(found.blocks.tolist(), digests, found.sums.tolist(), strict=True)) == expected
    assert found.ends.tolist() == ends


def test_a_block_with_a_hole_inside_is_seen_once(tmp_path: Path) -> None:
    content = [(48 * BLOCK, [(0, BLOCK, "1"), (8 * BLOCK, BLOCK, "2"), (20 * BLOCK, 9, "3"), (31 * BLOCK, 1, "4")])]
    assert seen(tmp_path, content, 16 * BLOCK, Sums(16 * BLOCK)).blocks.tolist() == [0, 1]


def test_told_to_stop_it_stops(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    sparse(tmp_path / "file", 9 * BLOCK, [(0, 9 * BLOCK, "text")])
    with opened("memory", tmp_path / "file") as source:
        assert len(scan([source], BLOCK, Sums(BLOCK), stop).blocks) == 0


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, BLOCK - 1), st.one_of(st.integers(1, 255), st.just(128))), min_size=1, max_size=8)
)
def test_a_sum_tells_blocks_apart_that_differ_in_a_few_bits(changes: list[tuple[int, int]]) -> None:
    before = bytearray(b"\x55" * BLOCK)
    after = bytearray(before)
    for position, mask in changes:
        after[position] ^= mask
    sums = Sums(BLOCK)
    told = sums.of(memoryview(before))[0] != sums.of(memoryview(after))[0]
    assert told == (before != after)
