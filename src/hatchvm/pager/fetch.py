"""Getting frames: those somebody waits for first, then those the last wake needed, then the rest.

A few threads share one table of frames. A frame is on its way at most once, however many wait for it; what is written
has been verified. A store that cannot be reached is tried again: a guest that waits for memory only sees time pass, up
to a limit. A frame that is damaged, even when read again, is an error at once for whoever needs it.
"""

from __future__ import annotations

import errno
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from hatchvm.base.errors import Corrupt, Exhausted, HatchError, Unavailable
from hatchvm.base.files import NO_ROOM
from hatchvm.base.units import MIB
from hatchvm.snapshots.manifest import Frames

THREADS: Final = 8
#: How many of them fetch what nobody waits for: blocks of the last wake; the rest, which must not disturb the guest.
_AHEAD_WIDTH: Final = 6
_REST_WIDTH: Final = 2
#: One read. Whoever comes to need a frame that is on its way waits for what lies before it in the same read.
_READ_BYTES: Final = MIB
_FINISH_BYTES: Final = 4 * MIB
#: Unpacking what nobody waits for: half the host's processors at most, and none of them while somebody waits.
_HANDS: Final = max(1, (os.cpu_count() or 1) // 2)
_YIELD_S: Final = 0.05
#: The first moments belong to the guest. Then the rest follows, when nobody has waited for a while, and soon anyway.
_EARLIEST_S: Final = 1.0
_QUIET_S: Final = 0.15
_LATEST_S: Final = 5.0
#: How long a guest may wait for a store that cannot be reached.
PATIENCE_S: Final = 60.0
_FIRST_DELAY_S: Final = 0.1
_LONGEST_DELAY_S: Final = 3.0
#: Failures in a row after which `finish` gives up.
_TRIES: Final = 6

#: Frames that may wait unpacked: their blocks belong in so many places that nobody can wait for all of them.
_MAX_HELD: Final = 64

_ABSENT, _FLYING, _HELD, _DONE, _BAD = range(5)
Numbers = npt.NDArray[np.int64]


class Reads(Protocol):
    """`source.Source.read`."""

    def __call__(self, pack: int, start: int, lengths: Sequence[int]) -> Iterator[memoryview]: ...


@dataclass(slots=True, eq=False)
class _Waiter:
    """Somebody who needs `left` more frames. `take`: what to do with each of them."""

    take: Callable[[int, memoryview], None]
    then: Callable[[int], None]
    left: int = 0


@dataclass(frozen=True, slots=True)
class _Job:
    """Consecutive frames of one pack. `demanded`: somebody waits."""

    frames: list[int]
    demanded: bool


class Fetcher:
    """`table`: where each frame lies. `unpack(frame, stored)` verifies.

    `spread(frame, plain)` writes some of its blocks to where they belong; True when all of them are written.
    """

    def __init__(
        self,
        table: Frames,
        read: Reads,
        unpack: Callable[[int, memoryview], bytes],
        spread: Callable[[int, memoryview], bool],
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._pack = table["pack"].tolist()
        self._offset = table["offset"].tolist()
        self._length = table["length"].tolist()
        self._read = read
        self._unpack = unpack
        self._spread = spread
        self._patience_s = patience_s
        self._state = np.full(len(table), _DONE, np.uint8)
        self._order = self._rest = np.zeros(0, np.int64)
        self._asked: dict[int, None] = {}
        self._waiters: dict[int, list[_Waiter]] = {}
        self._held: dict[int, memoryview] = {}
        self._unspread: list[int] = []
        self._ahead_flying = 0
        self._demand_flying = 0
        self._hands = threading.Semaphore(_HANDS)
        self._left = 0
        self._finishing = 0
        self._strikes = 0
        self._not_before = 0.0
        self._quiet_from = self._rest_at_last = 0.0
        self._closing = False
        #: One lock. Waited for: something to fetch; something else that happened.
        lock = threading.RLock()
        self._changed, self._wanted = threading.Condition(lock), threading.Condition(lock)
        #: Why somebody was given an error, or what is damaged: it stays. A sentence.
        self.failed: HatchError | None = None
        self.trouble: HatchError | None = None

    def begin(self, order: Numbers, rest: Numbers) -> None:
        """Start fetching: the frames of `order` first, then of `rest`; nothing else is ever fetched."""
        self._state[order] = self._state[rest] = _ABSENT
        self._order, self._rest = order, rest
        self._left = int(np.count_nonzero(self._state == _ABSENT))
        self._quiet_from = time.monotonic() + _EARLIEST_S
        self._rest_at_last = time.monotonic() + _LATEST_S
        for number in range(THREADS):
            threading.Thread(target=self._work, name=f"fetch {number}", daemon=True).start()

    def need(self, frames: Sequence[int], take: Callable[[int, memoryview], None], then: Callable[[int], None]) -> None:
        """Call `then` with 0 when what is needed of the frames is in place, or with an errno. From any thread.

        A frame is given to `take` if it is here, but all of its blocks are not in place yet.
        """
        waiter = _Waiter(take, then)
        with self._changed:
            bad = any(self._state[frame] == _BAD for frame in frames)
            held = {frame: self._held[frame] for frame in frames if frame in self._held}
            if not bad:
                absent = [frame for frame in frames if self._state[frame] in (_ABSENT, _FLYING)]
                waiter.left = 1 + len(absent)
                for frame in absent:
                    self._waiters.setdefault(frame, []).append(waiter)
                    if self._state[frame] == _ABSENT:
                        self._asked[frame] = None
                if absent:
                    self._quiet_from = max(self._quiet_from, time.monotonic() + _QUIET_S)
                    self._wanted.notify(len(absent))
        if bad:
            then(errno.EIO)
            return
        self._give(held, [waiter])

    def _give(self, frames: Mapping[int, memoryview], waiters: Sequence[_Waiter]) -> None:
        """Let them take frames that are here, and tell those who then have all they need."""
        for waiter in waiters:
            code = 0
            try:
                for frame, plain in frames.items():
                    waiter.take(frame, plain)
            except OSError as error:
                code = error.errno or errno.EIO
            with self._changed:
                ready = self._release(waiter, code)
            if ready:
                waiter.then(code)

    def finish(self) -> None:
        """Fetch all that is missing, at full width. Raises Corrupt, or Unavailable if the store stays away."""
        with self._changed:
            self._finishing += 1
            self._strikes, self._not_before = 0, 0.0
            self._wanted.notify_all()
            try:
                while self._left:
                    if self.failed is not None and isinstance(self.failed, Corrupt):
                        raise self.failed
                    if self._strikes >= _TRIES and self.trouble is not None:
                        raise self.trouble
                    self._changed.wait()
            finally:
                self._finishing -= 1

    def close(self) -> None:
        """Fetch nothing more; whoever waits gets an error."""
        with self._changed:
            self._closing = True
            self._wanted.notify_all()
            waiters = [waiter for waiting in self._waiters.values() for waiter in waiting]
            self._waiters.clear()
        for waiter in dict.fromkeys(waiters):
            waiter.then(errno.EIO)

    # -- choosing

    def _work(self) -> None:
        while (job := self._take()) is not None:
            try:
                self._run(job)
            finally:
                self._landed(job)

    def _take(self) -> _Job | None:
        with self._changed:
            while not self._closing:
                job = self._demanded() or self._ahead()
                if job is not None:
                    for frame in job.frames:
                        self._asked.pop(frame, None)
                        if frame not in self._held:
                            self._state[frame] = _FLYING
                    self._ahead_flying += not job.demanded
                    self._demand_flying += job.demanded
                    return job
                self._wanted.wait(self._pause_s())
            return None

    def _pause_s(self) -> float | None:
        """How long nothing will be chosen unless somebody asks; None: for ever."""
        now = time.monotonic()
        rest_from = min(self._quiet_from, self._rest_at_last) if len(self._rest) or self._unspread else 0.0
        pause_s = max(self._not_before, rest_from) - now
        return pause_s if pause_s > 0 else None

    def _demanded(self) -> _Job | None:
        if not self._asked:
            return None
        first = next(iter(self._asked))
        frames = self._adjoining(first, lambda frame: frame in self._asked, _READ_BYTES)
        return _Job(frames, demanded=True)

    def _ahead(self) -> _Job | None:
        if time.monotonic() < self._not_before:
            return None
        self._order = self._order[self._state[self._order] == _ABSENT]
        candidates, width = self._order, _AHEAD_WIDTH
        if not len(candidates):
            self._rest = self._rest[self._state[self._rest] == _ABSENT]
            if not self._finishing and time.monotonic() < min(self._quiet_from, self._rest_at_last):
                return None
            candidates, width = self._rest, _REST_WIDTH
        if self._ahead_flying >= (THREADS if self._finishing else width):
            return None
        if not len(candidates):
            return _Job([self._unspread.pop()], demanded=False) if self._unspread else None
        # A run of the list, not of the pack: what the list has later must not come earlier.
        following = iter(candidates.tolist())
        first = next(following)
        limit = _FINISH_BYTES if self._finishing else _READ_BYTES
        frames = self._adjoining(first, lambda frame: next(following, None) == frame, limit)
        return _Job(frames, demanded=False)

    def _adjoining(self, first: int, wanted: Callable[[int], bool], limit: int) -> list[int]:
        """`first` and the frames that lie right behind it in its pack, as long as they are wanted."""
        frames, total = [first], self._length[first]
        while (frame := frames[-1] + 1) < len(self._pack):
            before = frames[-1]
            total += self._length[frame]
            adjoins = self._pack[frame] == self._pack[before]
            adjoins = adjoins and self._offset[frame] == self._offset[before] + self._length[before]
            if not adjoins or total > limit or not wanted(frame):
                break
            frames.append(frame)
        return frames

    # -- fetching

    def _run(self, job: _Job) -> None:
        give_up = time.monotonic() + self._patience_s
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                self._fetch(job)
                return
            except HatchError as error:
                self._note(error)
                awaited = job.demanded and not self._closing
                if not awaited or time.monotonic() + delay_s > give_up:
                    self._give_up(job, error, final=awaited)
                    return
            time.sleep(delay_s * random.uniform(0.5, 1.0))
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)

    def _fetch(self, job: _Job) -> None:
        """Everything of the job that is not done yet. Raises Unavailable or Exhausted."""
        suspects = []
        left = [frame for frame in job.frames if self._state[frame] == _FLYING]
        for frame in job.frames:
            if frame in self._held:
                self._spread_out(frame)
        if not left:
            return
        try:
            pieces = self._read(self._pack[left[0]], self._offset[left[0]], [self._length[frame] for frame in left])
            for frame, stored in zip(left, pieces, strict=True):
                try:
                    self._in_turn(job, frame, stored)
                except Corrupt:
                    suspects.append(frame)
        except Corrupt:  # the pack itself is not there
            suspects = [frame for frame in left if self._state[frame] == _FLYING]
        for frame in suspects:
            self._look_again(frame)
        with self._changed:
            self.trouble, self._strikes = None, 0

    def _look_again(self, frame: int) -> None:
        """What came may have been damaged on its way: only what is damaged twice is damaged."""
        try:
            for stored in self._read(self._pack[frame], self._offset[frame], [self._length[frame]]):
                self._arrived(frame, stored)
        except Corrupt as error:
            print(f"{error}: {error.detail}" if error.detail else error, file=sys.stderr, flush=True)
            self._settle(frame, _BAD, errno.EIO, error)

    def _in_turn(self, job: _Job, frame: int, stored: memoryview) -> None:
        """What nobody waits for makes way for what somebody waits for."""
        if job.demanded or self._finishing:
            self._arrived(frame, stored)
            return
        self._make_way(job.frames)
        with self._hands:
            self._arrived(frame, stored)

    def _make_way(self, frames: Sequence[int]) -> None:
        """Wait a moment while somebody waits for other frames than these."""
        with self._changed:
            busy = self._asked or self._demand_flying
            if busy and not self._finishing and not any(frame in self._waiters for frame in frames):
                self._changed.wait(_YIELD_S)

    def _arrived(self, frame: int, stored: memoryview) -> None:
        plain = memoryview(self._unpack(frame, stored))
        whole = self._written(frame, plain)
        while not whole and len(self._held) >= _MAX_HELD:
            whole = self._written(frame, plain)
        if whole:
            self._settle(frame, _DONE, 0, None)
            return
        with self._changed:
            self._state[frame] = _HELD
            self._held[frame] = plain
            self._unspread.append(frame)
            waiters = self._waiters.pop(frame, ())
        self._give({frame: plain}, waiters)

    def _written(self, frame: int, plain: memoryview) -> bool:
        try:
            return self._spread(frame, plain)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise Exhausted("the disk is full: no room for the VM's memory and disk") from error
            raise Unavailable(f"the VM's files cannot be written: {error.strerror}") from error

    def _spread_out(self, frame: int) -> None:
        """Write the rest of a frame whose blocks belong in many places."""
        plain = self._held[frame]
        while not self._written(frame, plain):
            self._make_way([])
        with self._changed:
            del self._held[frame]
        self._settle(frame, _DONE, 0, None)

    def _settle(self, frame: int, state: int, code: int, error: HatchError | None) -> None:
        """The frame's fate is known: tell whoever waits."""
        with self._changed:
            self._state[frame] = state
            self._left -= state == _DONE
            self._asked.pop(frame, None)
            if error is not None:
                self.failed = error
            waiters = self._waiters.pop(frame, ())
            ready = [waiter for waiter in waiters if self._release(waiter, code)]
            if error is not None or not self._left:
                self._changed.notify_all()
        for waiter in ready:
            waiter.then(code)

    @staticmethod
    def _release(waiter: _Waiter, code: int) -> bool:
        """True if this waiter is to be told now: of its last frame, or of its first error."""
        if not waiter.left:
            return False
        waiter.left = 0 if code else waiter.left - 1
        return not waiter.left

    def _note(self, error: HatchError) -> None:
        """A failure: what nobody waits for is left alone for a while."""
        with self._changed:
            self._strikes += 1
            delay_s = min(_FIRST_DELAY_S * 2 ** min(self._strikes, 10), _LONGEST_DELAY_S)
            self._not_before = time.monotonic() + delay_s * random.uniform(0.5, 1.0)
            self.trouble = error
            self._changed.notify_all()

    def _give_up(self, job: _Job, error: HatchError, *, final: bool) -> None:
        """What is left of the job is nobody's again. `final`: whoever waits has waited long enough."""
        left = [frame for frame in job.frames if self._state[frame] == _FLYING]
        for frame in left:
            if final:
                self._settle(frame, _ABSENT, errno.EIO, error)
                continue
            with self._changed:
                self._state[frame] = _ABSENT
                if frame in self._waiters:
                    self._asked[frame] = None
        with self._changed:
            self._rest = np.concatenate([np.array(left, np.int64), self._rest])
            self._unspread += [frame for frame in job.frames if frame in self._held]
            self._wanted.notify_all()

    def _landed(self, job: _Job) -> None:
        with self._changed:
            self._ahead_flying -= not job.demanded
            self._demand_flying -= job.demanded
            self._wanted.notify()
            if not self._demand_flying:
                self._changed.notify_all()
