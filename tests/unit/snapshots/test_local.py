"""Local files of a snapshot, and what goes wrong with them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hatchvm.base.errors import Conflict, Corrupt, Unavailable
from hatchvm.snapshots.local import created, opened, write_at
from hatchvm.testing.sleeper import BLOCK, sparse


def test_a_read_is_filled_with_zeros_at_the_end_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    buffer = bytearray(b"x" * 8)
    with opened("memory", tmp_path / "file") as source:
        source.read_into(memoryview(buffer), 5)
    assert buffer == b"56789\0\0\0"


def test_a_file_that_shrank_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    with opened("memory", tmp_path / "file") as source:
        os.truncate(tmp_path / "file", 9)
        with pytest.raises(Conflict, match="memory"):
            source.read_into(memoryview(bytearray(5)), 5)


def test_all_data_is_found_in_a_sparse_file(tmp_path: Path) -> None:
    size = 100 * BLOCK + 5
    sparse(tmp_path / "file", size, [(10 * BLOCK + 1, 9, "text"), (50 * BLOCK, BLOCK, "text"), (size - 1, 1, "text")])
    with opened("memory", tmp_path / "file") as source:
        found = list(source.data())
    assert found == sorted(found)
    assert all(0 <= begin < end <= size for begin, end in found)
    for position in (10 * BLOCK + 1, 10 * BLOCK + 9, 50 * BLOCK, 51 * BLOCK - 1, size - 1):
        assert any(begin <= position < end for begin, end in found)


@pytest.mark.parametrize("size", [0, BLOCK, 2**40])
def test_a_file_of_holes_has_no_data(tmp_path: Path, size: int) -> None:
    sparse(tmp_path / "file", size, [])
    with opened("memory", tmp_path / "file") as source:
        assert list(source.data()) == []


def test_a_new_file_is_empty_and_private(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"older and longer than the new one")
    with created(tmp_path / "file", 9) as fd:
        write_at(fd, b"new", 3)
    assert (tmp_path / "file").read_bytes() == b"\0\0\0new\0\0\0"
    with created(tmp_path / "another", 0):
        assert (tmp_path / "another").stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match="state"), opened("state", tmp_path / "missing"):
        pass
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(Unavailable), opened("state", tmp_path / "file/below"):
        pass
