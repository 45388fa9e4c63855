"""One lazily restored file: a sparse file at its real place, and a table of the blocks that are in it.

A block is fetched when somebody reads it, or writes a part of it. Whatever a guest wrote stays: under one lock a write
marks its blocks as present, and a frame that arrives fills only blocks that are not.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from hatchvm.pager.fuse import Answer
from hatchvm.pager.ledger import Ledger
from hatchvm.snapshots.frames import Placement
from hatchvm.snapshots.manifest import Manifest, Stream

#: Asks for frames: each is given to the second argument when it comes, then the third is called with 0 or an errno.
#: Both are called from any thread.
Need = Callable[[Sequence[int], Callable[[int, memoryview], None], Callable[[int], None]], None]

_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2
_ZERO_RANGE: Final = 16
#: Blocks copied at once, and blocks written under the lock at once.
_MAX_RUN: Final = 256
_SPREAD: Final = 1024

Numbers = npt.NDArray[np.int64]
Blocks = npt.NDArray[np.bool_]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Volume:
    """A `fuse.File`. Without a `ledger` its presence is not written down, and syncing it means nothing.

    `lane` runs what waits for the disk, one after the other.
    """

    def __init__(
        self, path: Path, manifest: Manifest, stream: Stream, need: Need, *, ledger: Ledger | None, lane: Executor
    ) -> None:
        """`path` exists and has the stream's size, or what the guest has made of it since."""
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size
        self._stream_bytes = stream.size
        self._block_bytes = manifest.block_bytes
        self._frames, places = np.divmod(stream.slots.astype(np.int64) - 1, manifest.frame_slots)
        self._places = places.astype(np.uint8)
        self._placement = Placement(manifest, stream)
        self._need = need
        self._ledger = ledger
        self._lane = lane
        self._present = stream.slots == 0
        if ledger is not None:
            self._present |= ledger.present()
        self._missing = int(np.count_nonzero(~self._present))
        self._durable = self._changed = ledger is not None
        self._lock = threading.Lock()

    @property
    def block_bytes(self) -> int:
        return self._block_bytes

    @property
    def missing_bytes(self) -> int:
        return self._missing * self._block_bytes

    def frames(self) -> Numbers:
        """The frames that hold blocks still missing; some more than once."""
        frames: Numbers = self._frames[~self._present]
        return frames

    def look(self, start: int, end: int, unit: int) -> tuple[Blocks, Blocks]:
        """Of each `unit` bytes of [start, end): whether they are here; whether they are a snapshot's zeros.

        The range and blocks are made of whole units, or the range and units of whole blocks.
        """
        size = self._block_bytes
        first, last = start // size, -(-end // size)
        here, zero = self._present[first:last], self._frames[first:last] < 0
        if unit > size:
            begins = np.arange(0, len(here), unit // size)
            return np.logical_and.reduceat(here, begins), np.logical_and.reduceat(zero, begins)
        units = slice(start % size // unit, (end - first * size) // unit)
        return np.repeat(here, size // unit)[units], np.repeat(zero, size // unit)[units]

    def has(self, blocks: Numbers) -> bool:
        return bool(self._present[blocks].all())

    def load(self, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with what lies at `start`, which is here. Raises OSError."""
        if os.preadv(self._fd, (buffer,), start) != len(buffer):
            raise OSError(errno.EIO, "the file was cut")

    def bring(self, offset: int, length: int, then: Callable[[int], None]) -> None:
        """Call `then` with 0 when this part of the file is here, or with an errno. From any thread."""
        end = min(offset + length, self.size)
        self._after(self._lacking(offset, end), offset, end, lambda: then(0), then)

    def read(self, offset: int, length: int, answer: Answer) -> None:
        end = offset + length
        self._after(
            self._lacking(offset, end), offset, end, lambda: answer.data(self._pread(offset, length)), answer.error
        )

    def _pread(self, offset: int, length: int) -> bytes:
        return os.pread(self._fd, length, offset)

    def write(self, offset: int, data: memoryview, answer: Answer) -> None:
        frames = self._torn(offset, offset + len(data))
        kept = bytes(data) if frames else data

        def put() -> None:
            with self._lock:
                written = 0
                while written < len(kept):
                    written += os.pwrite(self._fd, kept[written:], offset + written)
                self._arrive(slice(*self._covered(offset, offset + len(kept))))
                self.size = max(self.size, offset + len(kept))
            answer.wrote(len(kept))

        self._after(frames, offset, offset + len(data), put, answer.error)

    def resize(self, size: int, done: Callable[[int], None]) -> None:
        def cut() -> None:
            with self._lock:
                os.ftruncate(self._fd, size)
                self._arrive(slice(-(-size // self._block_bytes), None))
                self.size = size
            done(0)

        self._after(self._torn(size, max(size, self.size)), size, size + 1, cut, done)

    def allocate(self, offset: int, length: int, mode: int, answer: Answer) -> None:
        clears = mode & ~_KEEP_SIZE in (_PUNCH_HOLE, _ZERO_RANGE)
        if not clears and mode & ~_KEEP_SIZE:
            answer.error(errno.EOPNOTSUPP)
            return

        def change() -> None:
            with self._lock:
                if _libc.fallocate(self._fd, mode, offset, length):
                    raise OSError(ctypes.get_errno(), "fallocate")
                if clears:
                    self._arrive(slice(*self._covered(offset, offset + length)))
                self.size = os.fstat(self._fd).st_size
            answer.data()

        end = offset + length
        self._after(self._torn(offset, end) if clears else (), offset, end, change, answer.error)

    def sync(self, answer: Answer) -> None:
        """What is lost with its VM whatever happens needs no disk: that the kernel has handed over what it held is all
        that syncing it is for."""
        if not self._durable:
            answer.data()
            return

        def sync() -> None:
            try:
                self.checkpoint()
            except OSError as error:
                answer.error(error.errno or errno.EIO)
            else:
                answer.data()

        self._lane.submit(sync)

    def checkpoint(self) -> None:
        """Make everything written so far durable, then the note of it. Only in the lane: it is not for two at once."""
        if not self._durable:
            return
        with self._lock:
            present = self._present.copy() if self._changed and self._ledger else None
            self._changed = False
        try:
            os.fdatasync(self._fd)
            if present is not None and self._ledger is not None:
                self._ledger.record(present)
                if present.all():
                    self._ledger.close()
                    self._ledger = None
        except OSError:
            self._changed = True
            raise

    def spread(self, frame: int, plain: memoryview) -> bool:
        """Write a frame's blocks to where they belong, as far as they are missing, but not many at once.

        True if none is missing any more. Raises OSError; may be repeated.
        """
        with self._lock:
            blocks, places = self._placement.of(frame)
            lacking = np.flatnonzero(~self._present[blocks])
            now = lacking[:_SPREAD]
            self._write(blocks[now], places[now], plain)
        return len(now) == len(lacking)

    def _place(self, span: tuple[int, int], frame: int, plain: memoryview) -> None:
        """Write a frame's blocks to where they belong in a span of blocks, as far as they are missing there."""
        first, last = span
        with self._lock:
            lacking = (self._frames[first:last] == frame) & ~self._present[first:last]
            blocks = first + np.flatnonzero(lacking)
            self._write(blocks, self._places[blocks].astype(np.int64), plain)

    def _write(self, blocks: Numbers, places: Numbers, plain: memoryview) -> None:
        for piece in _runs(blocks):
            self._fill(int(blocks[piece.start]), places[piece], plain)

    def _fill(self, first: int, places: Numbers, plain: memoryview) -> None:
        """Write consecutive blocks from wherever in a frame they lie. Under the lock."""
        size, count = self._block_bytes, len(places)
        if int(places[-1]) - int(places[0]) == count - 1 and (count < 2 or bool((np.diff(places) == 1).all())):
            data = plain[int(places[0]) * size : (int(places[-1]) + 1) * size]
        else:
            data = np.frombuffer(plain, np.uint8).reshape(-1, size)[places].data.cast("B")
        room = min(count * size, self._stream_bytes - first * size)
        if os.pwrite(self._fd, data[:room], first * size) != room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._arrive(slice(first, first + count))

    def _arrive(self, blocks: slice) -> None:
        """These blocks are in the file. Under the lock."""
        span = self._present[blocks]
        new = span.size - int(np.count_nonzero(span))
        if new:
            span[:] = True
            self._missing -= new
            self._changed = True

    def _covered(self, start: int, end: int) -> tuple[int, int]:
        """The blocks that lie in [start, end) with all the bytes they have in the file, as a range."""
        size = self._block_bytes
        first = -(-start // size)
        last = -(-end // size) if end >= self.size else end // size
        return first, max(first, last)

    def _torn(self, start: int, end: int) -> Sequence[int]:
        """The frames of missing blocks of which a part lies in [start, end) and a part outside."""
        if not self._missing or start >= end:
            return ()
        first, last = self._covered(start, end)
        size = self._block_bytes
        touched = {start // size, (end - 1) // size}
        return self._frames_of([block for block in touched if not first <= block < last])

    def _lacking(self, start: int, end: int) -> Sequence[int]:
        """The frames of missing blocks in [start, end)."""
        if not self._missing:
            return ()
        first, last = start // self._block_bytes, -(-end // self._block_bytes)
        span = self._present[first:last]
        return () if span.all() else self._frames_of((first + np.flatnonzero(~span)).tolist())

    def _frames_of(self, blocks: Sequence[int]) -> Sequence[int]:
        present, frames = self._present, self._frames
        missing = {int(frames[block]) for block in blocks if block < len(present) and not present[block]}
        return sorted(missing)

    def _after(
        self, frames: Sequence[int], start: int, end: int, act: Callable[[], None], fail: Callable[[int], None]
    ) -> None:
        """`act` at once, or when what [start, end) lacks of these frames is there."""
        if not frames:
            act()
            return

        def then(code: int) -> None:
            try:
                if code:
                    fail(code)
                else:
                    act()
            except OSError as error:
                fail(error.errno or errno.EIO)

        span = start // self._block_bytes, -(-end // self._block_bytes)
        self._need(frames, lambda frame, plain: self._place(span, frame, plain), then)


def _runs(blocks: Numbers) -> Iterator[slice]:
    """Stretches of consecutive blocks, none too long to be copied at once."""
    breaks = (np.flatnonzero(np.diff(blocks) != 1) + 1).tolist()
    for begin, end in itertools.pairwise([0, *breaks, len(blocks)]):
        for start in range(begin, end, _MAX_RUN):
            yield slice(start, min(start + _MAX_RUN, end))
