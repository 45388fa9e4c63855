"""Joining changed pages with the memory that they were written over."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from hatchvm.vmm.firecracker.memory import join

PAGE = 4096
PAGES = 64


def page(fill: int) -> bytes:
    return bytes([fill]) * PAGE


def sparse(path: Path, pages: dict[int, int]) -> None:
    path.touch()
    os.truncate(path, PAGES * PAGE)
    with path.open("r+b") as file:
        for number, fill in pages.items():
            os.pwrite(file.fileno(), page(fill), number * PAGE)


written = st.dictionaries(st.integers(0, PAGES - 1), st.integers(0, 255), max_size=PAGES)


@given(before=written, rounds=st.lists(written, min_size=1, max_size=4))
def test_the_last_writer_of_every_page_wins(
    tmp_path_factory: object, before: dict[int, int], rounds: list[dict[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("join")  # type: ignore[attr-defined]
    memory, changes = folder / "memory", folder / "changes"
    sparse(memory, before)
    expected = dict(before)
    inodes = None
    for pages in rounds:
        sparse(changes, pages)
        assert set(pages) <= set(join(memory, changes).tolist())
        expected |= pages
        assert changes.stat().st_size == 0
        assert inodes in (None, (memory.stat().st_ino, changes.stat().st_ino))
        inodes = memory.stat().st_ino, changes.stat().st_ino
    assert memory.read_bytes() == b"".join(page(expected.get(number, 0)) for number in range(PAGES))


def test_joining_twice_is_joining_once(tmp_path: Path) -> None:
    """Cut off before the changes were emptied, it is done again with whatever has come in addition."""
    memory, changes = tmp_path / "memory", tmp_path / "changes"
    sparse(memory, {0: 1, 1: 2})
    sparse(changes, {1: 3})
    join(memory, changes)
    sparse(changes, {1: 3, 5: 6})
    assert {1, 5} <= set(join(memory, changes).tolist())
    assert memory.read_bytes()[: 6 * PAGE] == page(1) + page(3) + bytes(3 * PAGE) + page(6)


def test_nothing_changed(tmp_path: Path) -> None:
    memory, changes = tmp_path / "memory", tmp_path / "changes"
    sparse(memory, {0: 1})
    changes.touch()
    assert len(join(memory, changes)) == 0
    sparse(changes, {})
    assert len(join(memory, changes)) == 0
    assert memory.read_bytes()[:PAGE] == page(1)
