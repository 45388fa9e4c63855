"""Pages of a guest's memory, put into the process that waits for them.

What is known of a page here (installed, given back) only saves work and keeps a page that the guest gave back from
coming again: the kernel itself refuses to replace a page that is there. One thread calls all of this, and reads the
events too, so a page that is given back is known to be before anything else is installed.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from enum import Enum, auto
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from hatchvm.pager import uffd
from hatchvm.pager.memory import Memory
from hatchvm.pager.regions import PAGE, Layout
from hatchvm.pager.uffd import Outcome

#: Installed at once around a page that somebody waits for: 4 KiB at a time cost ten times as much a byte (measured).
WINDOW_BYTES: Final = 256 * 1024

_NOTHING, _CONTENT, _ZEROS = range(3)
Kinds = npt.NDArray[np.uint8]


class Put(Enum):
    DONE = auto()
    MISSING = auto()  # the page has to be fetched first
    CHANGING = auto()  # events must be read first


class GoneError(Exception):
    """The process whose memory it is has ended."""


class Installer:
    """Fills the memory that is laid out so behind a userfaultfd from `memory`. Pages are numbered as in the file.

    Methods raise GoneError, and OSError if the file cannot be read or there is no memory for a page.
    """

    def __init__(self, fd: int, layout: Layout, memory: Memory) -> None:
        self._fd = fd
        self._layout = layout
        self._memory = memory
        self._page = layout.page_bytes
        self._pages = -(-memory.size // self._page)
        self._per_window = max(1, WINDOW_BYTES // self._page)
        #: Nothing to be done about it ahead of a fault: it is installed, or not mapped at all.
        self._settled = np.ones(self._pages, np.bool_)
        for start, end, _ in layout.mapped(0, memory.size):
            self._settled[start // self._page : end // self._page] = False
        self._given_back = np.zeros(self._pages, np.bool_)
        self._buffer = mmap.mmap(-1, self._per_window * self._page)
        self._view = memoryview(self._buffer)
        self._source = int(np.frombuffer(self._buffer, np.uint8).ctypes.data)

    @property
    def windows(self) -> int:
        return -(-self._pages // self._per_window)

    @property
    def window_bytes(self) -> int:
        return self._per_window * self._page

    def answer(self, page: int) -> Put:
        """Install a page that somebody waits for, and what is here of the window around it."""
        first = page // self._per_window * self._per_window
        kinds, wanted = self._kinds(first)
        own = wanted[page - first]
        if own == _NOTHING:
            return Put.MISSING
        kinds[page - first] = own  # whatever is noted of it: somebody waits
        return Put.DONE if self._install(first, kinds) else Put.CHANGING

    def ahead(self, window: int) -> bool:
        """Install what is here of a window; False if events must be read first."""
        first = window * self._per_window
        kinds, _ = self._kinds(first)
        kinds[self._given_back[first : first + len(kinds)]] = _NOTHING
        return self._install(first, kinds)

    def given_back(self, start: int, end: int) -> None:
        """The guest has given back what lies in this range of addresses: whatever comes there again is zeros."""
        for region in self._layout.regions:
            first, last = max(start, region.address), min(end, region.address + region.size)
            if first < last:
                by = region.offset - region.address
                pages = slice((first + by) // self._page, -(-(last + by) // self._page))
                self._given_back[pages] = True
                self._settled[pages] = False

    def _kinds(self, first: int) -> tuple[Kinds, Kinds]:
        """For each page of a window: what is to be done with it, and what would be if it were not settled."""
        last = min(first + self._per_window, self._pages)
        here, zero = self._memory.look(first * self._page, last * self._page, self._page)
        wanted: Kinds = np.where(here, _CONTENT, _NOTHING).astype(np.uint8)
        if self._page == PAGE:  # there is no huge page of zeros
            wanted[here & zero] = _ZEROS
        wanted[self._given_back[first:last]] = _ZEROS
        kinds = wanted.copy()
        kinds[self._settled[first:last]] = _NOTHING
        return kinds, wanted

    def _install(self, first: int, kinds: Kinds) -> bool:
        for start, end in _runs(kinds):
            if kinds[start] == _NOTHING:
                continue
            span = (first + start) * self._page, min((first + end) * self._page, self._memory.size)
            for offset, stop, address in self._layout.mapped(*span):
                if not self._put(int(kinds[start]), offset, stop, address):
                    return False
            self._settled[first + start : first + end] = True
        return True

    def _put(self, kind: int, start: int, end: int, address: int) -> bool:
        """Pages [start, end) of the file, at most a window, to `address`; False if events must be read first."""
        by_kernel = kind == _ZEROS and self._page == PAGE
        if not by_kernel:
            self._fill(kind, start, end - start)
        done = 0
        while done < (length := end - start):
            if by_kernel:
                outcome, more = uffd.zero(self._fd, address + done, length - done)
            else:
                outcome, more = uffd.copy(self._fd, address + done, self._source + done, length - done)
            if outcome is Outcome.CHANGING:
                return False
            if outcome is Outcome.GONE:
                raise GoneError
            done += self._page if outcome is Outcome.HERE else more
        return True

    def _fill(self, kind: int, start: int, length: int) -> None:
        if kind == _ZEROS:
            self._view[:length] = bytes(length)
        else:
            self._memory.load(start, self._view[:length])


def _runs(kinds: Kinds) -> Iterator[tuple[int, int]]:
    """Stretches of the same kind."""
    return pairwise([0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)])
