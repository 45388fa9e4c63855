"""What is fetched when, and what becomes of a store that fails."""

from __future__ import annotations

import errno
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
import pytest

from hatchvm.base.errors import Corrupt, Unavailable
from hatchvm.pager.fetch import THREADS, Fetcher
from hatchvm.snapshots.manifest import FRAME

_WAIT_S: Final = 20.0
#: Longer than a read may be: no two frames are read at once.
_FAR: Final = 8 * 1024 * 1024
#: More than may be read ahead at once.
MANY: Final = 30


class Store:
    """Frames whose content is their number. Reads are let go one by one, or all."""

    def __init__(self, count: int, *, apart: int = _FAR) -> None:
        self.table = np.zeros(count, FRAME)
        self.table["offset"] = np.arange(count) * apart
        self.table["length"] = apart if apart < _FAR else 8
        self.numbers = {int(offset): number for number, offset in enumerate(self.table["offset"])}
        self.reads: queue.Queue[tuple[int, ...]] = queue.Queue()
        self.gates: dict[int, threading.Event] = {}
        self.everything = threading.Event()
        self.lock = threading.Lock()
        self.fail: Callable[[int], bytes] = lambda frame: b"%08d" % frame
        self.placed: queue.Queue[int] = queue.Queue()
        self.pieces = 1
        self._spread: dict[int, int] = {}
        self.fetcher = Fetcher(self.table, self.read, self.unpack, self.spread, patience_s=0.0)

    def read(self, pack: int, start: int, lengths: Sequence[int]) -> Iterator[memoryview]:
        first = self.numbers[start]
        self.reads.put(tuple(range(first, first + len(lengths))))
        assert self.gate(first).wait(_WAIT_S)
        for frame in range(first, first + len(lengths)):
            yield memoryview(self.fail(frame))

    def unpack(self, frame: int, stored: memoryview) -> bytes:
        if bytes(stored) != b"%08d" % frame:
            raise Corrupt(f"frame {frame} is damaged")
        return bytes(stored)

    def spread(self, frame: int, plain: memoryview) -> bool:
        self._spread[frame] = self._spread.get(frame, 0) + 1
        self.placed.put(frame)
        return self._spread[frame] >= self.pieces

    def begin(self, order: Sequence[int] = (), rest: Sequence[int] | None = None) -> None:
        left = sorted(set(range(len(self.table))) - set(order)) if rest is None else rest
        self.fetcher.begin(np.array(order, np.int64), np.array(left, np.int64))

    def gate(self, frame: int) -> threading.Event:
        with self.lock:
            return self.everything if self.everything.is_set() else self.gates.setdefault(frame, threading.Event())

    def let_go(self, frame: int) -> None:
        self.gate(frame).set()

    def let_all_go(self) -> None:
        with self.lock:
            self.everything.set()
            for gate in self.gates.values():
                gate.set()

    def next_read(self) -> tuple[int, ...]:
        return self.reads.get(timeout=_WAIT_S)


class Waiter:
    """Somebody who needs frames."""

    def __init__(self, store: Store, *frames: int) -> None:
        self.told: queue.Queue[int] = queue.Queue()
        self.taken: list[int] = []
        store.fetcher.need(frames, lambda frame, plain: self.taken.append(frame), self.told.put)

    def code(self) -> int:
        return self.told.get(timeout=_WAIT_S)


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store(MANY)
    yield made
    made.fetcher.close()
    made.let_all_go()


def test_what_the_last_wake_needed_comes_first_and_the_rest_follows(store: Store) -> None:
    order = [7, 3, 20]
    store.begin(order)
    assert {store.next_read() for _ in order} == {(7,), (3,), (20,)}
    for frame in order:
        store.let_go(frame)
    assert sorted(store.next_read() for _ in range(2)) == [(0,), (1,)]
    store.let_all_go()
    store.fetcher.finish()
    assert sorted(store.placed.queue) == list(range(MANY))


def test_whoever_waits_comes_before_what_nobody_waits_for(store: Store) -> None:
    store.begin(range(MANY))
    ahead = {store.next_read()[0] for _ in range(6)}
    waiter = Waiter(store, MANY - 1)
    assert store.next_read() == (MANY - 1,)
    store.let_go(MANY - 1)
    assert waiter.code() == 0
    assert ahead == set(range(6))
    assert store.placed.get(timeout=_WAIT_S) == MANY - 1


def test_a_frame_is_read_once_however_many_wait(store: Store) -> None:
    store.begin([5], [5])
    assert store.next_read() == (5,)
    waiters = [Waiter(store, 5) for _ in range(10)]
    store.let_go(5)
    assert {waiter.code() for waiter in waiters} == {0}
    assert Waiter(store, 5).code() == 0
    assert store.reads.empty()


def test_neighbours_are_read_together() -> None:
    store = Store(40, apart=64 * 1024)
    store.fail = lambda frame: b"%08d" % frame
    store.begin(range(40))
    assert len(store.next_read()) == 16  # 1 MiB
    store.fetcher.close()
    store.let_all_go()


def test_all_frames_that_are_needed_must_come(store: Store) -> None:
    store.begin([], [1, 2])
    waiter = Waiter(store, 1, 2)
    store.let_go(1)
    assert store.placed.get(timeout=_WAIT_S) == 1
    assert waiter.told.empty()
    store.let_go(2)
    assert waiter.code() == 0


def test_a_frame_with_many_places_serves_who_waits_before_it_is_everywhere(store: Store) -> None:
    store.pieces = 3
    store.begin([], [4])
    waiter = Waiter(store, 4)
    store.let_all_go()
    assert waiter.code() == 0
    assert waiter.taken == [4]
    store.fetcher.finish()
    assert list(store.placed.queue) == [4, 4, 4]


def test_damage_on_the_way_is_read_again(store: Store) -> None:
    seen: list[int] = []

    def once(frame: int) -> bytes:
        seen.append(frame)
        return b"garbage!" if len(seen) == 1 else b"%08d" % frame

    store.fail = once
    store.let_all_go()
    store.begin([], [2])
    assert Waiter(store, 2).code() == 0
    store.fetcher.finish()
    assert store.fetcher.failed is None


def test_damage_in_the_store_is_an_error_at_once_and_the_others_still_come(store: Store) -> None:
    store.fail = lambda frame: b"garbage!" if frame == 3 else b"%08d" % frame
    store.let_all_go()
    store.begin()
    assert Waiter(store, 3).code() == errno.EIO
    assert Waiter(store, 4).code() == 0
    with pytest.raises(Corrupt, match="frame 3"):
        store.fetcher.finish()
    assert Waiter(store, 3).code() == errno.EIO
    assert isinstance(store.fetcher.failed, Corrupt)
    assert 3 not in store.placed.queue


def away(frame: int) -> bytes:
    raise Unavailable("the store is away")


def test_a_store_that_stays_away_is_an_error_when_patience_ends_and_may_come_back(store: Store) -> None:
    store.fail = away
    store.let_all_go()
    store.begin([], [1])
    assert Waiter(store, 1).code() == errno.EIO
    with pytest.raises(Unavailable, match="away"):
        store.fetcher.finish()
    store.fail = lambda frame: b"%08d" % frame
    store.fetcher.finish()
    assert Waiter(store, 1).code() == 0
    assert store.fetcher.trouble is None


def test_a_full_disk_is_said_to_be_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(frame: int, plain: memoryview) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.fetcher, "_spread", full)
    store.let_all_go()
    store.begin([], [1])
    assert Waiter(store, 1).code() == errno.EIO
    assert "full" in str(store.fetcher.failed)


def test_ending_tells_whoever_waits(store: Store) -> None:
    store.begin([], [1])
    waiter = Waiter(store, 1)
    store.fetcher.close()
    assert waiter.code() == errno.EIO


def test_there_is_a_thread_left_for_those_who_wait(store: Store) -> None:
    """However much is read ahead."""
    store.begin(range(MANY - 2))
    first = {store.next_read()[0] for _ in range(6)}
    waiters = [Waiter(store, frame) for frame in range(MANY - 2, MANY)]
    assert {store.next_read()[0] for _ in range(THREADS - 6)} == {MANY - 2, MANY - 1}
    store.let_all_go()
    assert {waiter.code() for waiter in waiters} == {0}
    assert first == set(range(6))
