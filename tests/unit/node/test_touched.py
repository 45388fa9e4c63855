"""Which pages a process has touched, and in what order the moments put them."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from hatchvm.base.errors import Unavailable
from hatchvm.base.paths import VMPaths
from hatchvm.node import touched

PAGE: Final = 4096
PAGES: Final = 4096


@pytest.fixture
def paths(tmp_path: Path) -> VMPaths:
    paths = VMPaths(tmp_path)
    paths.memory.touch()
    os.truncate(paths.memory, PAGES * PAGE)
    return paths


@pytest.fixture
def memory(paths: VMPaths) -> Iterator[mmap.mmap]:
    with paths.memory.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        yield memory


def test_written_pages_are_seen(paths: VMPaths, memory: mmap.mmap) -> None:
    assert len(touched.resident(os.getpid(), paths)) == 0
    for page in (5, 1000, PAGES - 1):
        memory[page * PAGE] = 1
    assert touched.resident(os.getpid(), paths).tolist() == [5, 1000, PAGES - 1]
    assert len(touched.resident(os.getpid(), VMPaths(paths.root / "other"))) == 0


def test_a_process_that_is_gone_has_touched_nothing(paths: VMPaths) -> None:
    assert len(touched.resident(2**22 + 1, paths)) == 0


async def test_what_was_touched_first_comes_first(
    paths: VMPaths, memory: mmap.mmap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(touched, "MOMENTS_S", (0.0, 0.0, 0.0))
    seen = [[9], [9, 3], [9, 3, 7]]
    monkeypatch.setattr(touched, "resident", lambda pid, files: np.array(sorted(seen.pop(0)), np.uint32))
    await touched.record_file(paths, os.getpid())
    order = touched.read(paths)
    assert order is not None
    assert order.tolist() == [9, 3, 7]


class Asked:
    """A pager that says what was asked of it, and then ends."""

    def __init__(self, *answers: list[int]) -> None:
        self._answers = list(answers)

    async def asked(self) -> list[int]:
        if not self._answers:
            raise Unavailable("it has ended")
        return self._answers.pop(0)


async def test_what_a_guest_waited_for_is_added_to_what_was_known(
    paths: VMPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(touched, "MOMENTS_S", (0.0, 0.0, 0.0))
    touched.write(paths, np.array([40, 33], np.uint32))
    await touched.record_faults(paths, Asked([2], [2, 0]))  # type: ignore[arg-type]
    order = touched.read(paths)
    assert order is not None
    assert order.tolist() == [40, 33, 32, *range(34, 40), *range(41, 48), *range(16)]


def test_what_is_not_known_is_none_and_a_cut_file_loses_its_end(paths: VMPaths) -> None:
    assert touched.read(paths) is None
    touched.write(paths, np.array([1, 2], np.uint32))
    paths.order.write_bytes(paths.order.read_bytes()[:-1])
    order = touched.read(paths)
    assert order is not None
    assert order.tolist() == [1]
