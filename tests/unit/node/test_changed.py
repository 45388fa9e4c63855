"""What is remembered of a memory's changes: when it is believed, and when it is not."""

from __future__ import annotations

from typing import Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.base.paths import VMPaths
from hatchvm.node import changed
from hatchvm.snapshots.layout import SnapshotKeys

BOOT: Final = "boot-1"
KEYS: Final = SnapshotKeys("vm-0123456789ab", "snap-0123456789ab")
OLDER: Final = SnapshotKeys("vm-ffffffffffff", "snap-ffffffffffff")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> VMPaths:
    return VMPaths(tmp_path_factory.mktemp("vm"))


def known(paths: VMPaths, boot_id: str = BOOT) -> tuple[SnapshotKeys, list[int]] | None:
    since = changed.read(paths, boot_id)
    return None if since is None else (since.keys, since.pages.tolist())


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_what_was_written_is_read(paths: VMPaths, pages: list[int]) -> None:
    changed.write(paths, BOOT, KEYS, np.array(pages, np.uint32))
    assert known(paths) == (KEYS, pages)


def test_of_what_is_whole_nothing_changed(paths: VMPaths) -> None:
    changed.write(paths, BOOT, KEYS)
    assert known(paths) == (KEYS, [])


def test_after_another_boot_of_the_host_it_is_not_believed(paths: VMPaths) -> None:
    changed.write(paths, BOOT, KEYS)
    assert known(paths, "boot-2") is None


def test_it_is_taken_once(paths: VMPaths) -> None:
    changed.write(paths, BOOT, KEYS)
    assert changed.take(paths, BOOT) is not None
    assert changed.take(paths, BOOT) is None


def test_what_is_not_believed_is_taken_away_too(paths: VMPaths) -> None:
    changed.write(paths, BOOT, KEYS)
    assert changed.take(paths, "boot-2") is None
    assert not paths.changed.exists()


def test_a_damaged_one_is_none(paths: VMPaths) -> None:
    changed.write(paths, BOOT, KEYS, np.array([1, 2, 3], np.uint32))
    whole = paths.changed.read_bytes()
    for length in range(len(whole)):
        paths.changed.write_bytes(whole[:length])
        assert known(paths) is None
    for damaged in (whole + b"\0" * 4, b"[]\n", b"{}\n", b"\xff\n", whole.replace(b"snap-0", b"snap/0")):
        paths.changed.write_bytes(damaged)
        assert known(paths) is None


def test_on_a_full_disk_the_older_one_stays(paths: VMPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    changed.write(paths, BOOT, OLDER, np.array([1], np.uint32))
    monkeypatch.setattr(changed, "write_atomic", full)
    changed.write(paths, BOOT, KEYS)
    assert known(paths) == (OLDER, [1])
