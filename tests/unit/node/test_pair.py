"""The saved pair: when it is believed, and when it is not."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from hatchvm.base import tasks
from hatchvm.base.errors import Corrupt
from hatchvm.base.paths import VMPaths
from hatchvm.node import pair
from hatchvm.node.pair import Saved
from hatchvm.testing.vmm import STAMP

BOOT: Final = "boot-1"
LATER: Final = "boot-2"


@pytest.fixture
def paths(tmp_path: Path) -> VMPaths:
    paths = VMPaths(tmp_path)
    paths.memory.write_bytes(b"memory")
    paths.state.write_bytes(b"state")
    return paths


def commit(paths: VMPaths, *, synced: bool) -> Saved:
    return pair.commit(paths, stamp=STAMP, accepted=frozenset({80, 22}), boot_id=BOOT, synced=synced)


def test_what_was_saved_is_loaded(paths: VMPaths) -> None:
    assert pair.load(paths, BOOT) is None
    saved = commit(paths, synced=False)
    assert pair.load(paths, BOOT) == saved


def test_what_an_older_version_saved_is_sound_but_fits_nowhere(paths: VMPaths) -> None:
    commit(paths, synced=True)
    record = json.loads(paths.saved.read_bytes())
    del record["stamp"]["format"]
    paths.saved.write_text(json.dumps(record))
    saved = pair.load(paths, BOOT)
    assert saved is not None
    assert saved.stamp.difference(STAMP)


def test_only_a_pair_that_would_be_loaded_is_sound(paths: VMPaths) -> None:
    assert not pair.sound(paths, BOOT)
    commit(paths, synced=False)
    assert pair.sound(paths, BOOT)
    assert not pair.sound(paths, LATER)
    paths.state.write_bytes(b"damage")
    assert not pair.sound(paths, BOOT)


@pytest.mark.parametrize("synced", [False, True])
def test_only_what_reached_the_disk_is_believed_after_another_boot(paths: VMPaths, synced: bool) -> None:
    saved = commit(paths, synced=synced)
    assert pair.load(paths, LATER) == (saved if synced else None)


async def test_syncing_makes_it_believable(paths: VMPaths) -> None:
    saved = await pair.sync(paths, commit(paths, synced=False))
    assert saved.synced
    assert pair.load(paths, LATER) == saved


@pytest.mark.parametrize("synced", [False, True])
def test_a_wake_under_way_is_believed_on_this_boot_only(paths: VMPaths, synced: bool) -> None:
    saved = commit(paths, synced=synced)
    pair.begin_wake(paths, saved, BOOT)
    assert not paths.saved.exists()
    assert pair.load(paths, BOOT) == saved
    assert pair.load(paths, LATER) is None


@pytest.mark.parametrize("synced", [False, True])
def test_a_wake_that_power_cut_before_it_was_announced_for_good_did_not_happen(paths: VMPaths, synced: bool) -> None:
    saved = commit(paths, synced=synced)
    before = paths.saved.read_bytes()
    pair.begin_wake(paths, saved, BOOT)
    paths.saved.write_bytes(before)  # its removal had not reached the disk
    assert pair.load(paths, LATER) == (saved if synced else None)


def test_a_wake_of_a_pair_from_an_earlier_boot_belongs_to_this_one(paths: VMPaths) -> None:
    saved = commit(paths, synced=True)
    pair.begin_wake(paths, saved, LATER)
    assert pair.load(paths, BOOT) is None
    assert pair.load(paths, LATER) == replace(saved, boot_id=LATER)


@pytest.mark.parametrize("synced", [False, True])
@pytest.mark.parametrize("announced", [False, True])
def test_a_wake_that_failed_leaves_it_as_before(paths: VMPaths, announced: bool, synced: bool) -> None:
    saved = commit(paths, synced=synced)
    if announced:
        pair.begin_wake(paths, saved, BOOT)
    pair.put_back(paths, saved)
    assert paths.saved.exists()
    assert not paths.waking.exists()
    assert pair.load(paths, BOOT) == saved
    assert (pair.load(paths, LATER) is not None) == synced


def test_a_pair_that_was_spent_in_vain_can_be_put_back(paths: VMPaths) -> None:
    saved = commit(paths, synced=True)
    pair.begin_wake(paths, saved, BOOT)
    pair.spend(paths)
    assert pair.load(paths, BOOT) is None
    pair.put_back(paths, saved)
    assert pair.load(paths, BOOT) == saved


def test_putting_back_needs_no_room(paths: VMPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = commit(paths, synced=True)
    pair.begin_wake(paths, saved, BOOT)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pair, "write_atomic", full)
    pair.put_back(paths, saved)
    assert pair.load(paths, BOOT) == saved


async def test_a_marker_that_is_being_written_is_waited_for_even_by_who_gives_up(
    paths: VMPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would come back after the wake had spent it, and a later wake would believe it."""
    saved = commit(paths, synced=False)
    loop, began, go, write = asyncio.get_running_loop(), asyncio.Event(), threading.Event(), pair._write

    def slow(*args: Any, **options: Any) -> None:
        loop.call_soon_threadsafe(began.set)
        go.wait()
        write(*args, **options)

    monkeypatch.setattr(pair, "_write", slow)
    syncing = tasks.spawn(pair.sync(paths, saved), name="sync")
    await began.wait()
    syncing.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not syncing.done()
    go.set()
    await asyncio.wait([syncing])
    pair.spend(paths)
    await asyncio.to_thread(lambda: None)
    assert not paths.saved.exists()


def test_other_files_than_those_saved_are_corrupt(paths: VMPaths) -> None:
    commit(paths, synced=True)
    paths.state.write_bytes(b"other")
    with pytest.raises(Corrupt, match="not what was saved"):
        pair.load(paths, BOOT)
    paths.state.write_bytes(b"state")
    paths.memory.write_bytes(b"short")
    with pytest.raises(Corrupt, match="not what was saved"):
        pair.load(paths, BOOT)
    paths.memory.unlink()
    with pytest.raises(Corrupt, match="missing"):
        pair.load(paths, BOOT)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "1", '{"stamp": {}}', json.dumps({"stamp": {}, "accepted": [], "x": 1})]
)
def test_a_damaged_marker_is_corrupt(paths: VMPaths, text: str) -> None:
    commit(paths, synced=True)
    paths.saved.write_text(text)
    with pytest.raises(Corrupt, match="marker"):
        pair.load(paths, BOOT)
