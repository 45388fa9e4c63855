"""The loop that answers a guest's page faults.

One thread reads the kernel's messages and installs pages: those somebody waits for first; then those the last wake
needed, as they come; then, once everything is on this host, all the rest. What it installs comes from the memory's
file, where only blocks that were verified count as present.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections import deque
from typing import Final

import numpy as np

from hatchvm.base.errors import Invalid
from hatchvm.pager import uffd
from hatchvm.pager.install import GoneError, Installer, Put
from hatchvm.pager.memory import Memory
from hatchvm.pager.regions import Layout
from hatchvm.pager.uffd import Event
from hatchvm.pager.volume import Numbers

#: Fetched at once around a page that is missing, as readahead does for a file (see `fuse`).
AROUND_BYTES: Final = 64 * 1024
#: As many stretches as one line of the pager's control socket may name: more than a guest touches in its first seconds.
_MAX_ASKED: Final = 4096
#: The kernel tells what is changing a moment after it has refused to install something for that reason.
_CHANGING_MS: Final = 1


class Faults:
    """`connection`: open as long as the process lives whose userfaultfd `fd` is. `order`: blocks, those needed first.

    Owns `fd`.
    """

    def __init__(self, fd: int, connection: socket.socket, layout: Layout, memory: Memory, order: Numbers) -> None:
        self._fd = fd
        self._connection = connection
        self._layout = layout
        self._memory = memory
        self._installer = Installer(fd, layout, memory)
        self._ahead = _by_window(order, self._installer.window_bytes // memory.block_bytes)
        self._next = 0
        #: Stretch of the file being fetched -> pages in it that somebody waits for.
        self._awaited: dict[int, set[int]] = {}
        self._again: list[int] = []
        self._asked: dict[int, None] = {}
        #: Told by other threads, which then ring the bell.
        self._arrived: deque[tuple[int, int]] = deque()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def nudge(self) -> None:
        """Something has arrived in the memory's file. From any thread."""
        os.eventfd_write(self._bell, 1)

    def asked(self) -> list[int]:
        """What the guest has waited for, first ones first: numbers of stretches of AROUND_BYTES. From any thread."""
        return list(self._asked)[:_MAX_ASKED]

    def run(self) -> None:
        """Until the process has ended: raises GoneError then. Raises HatchError or OSError if it must not go on.

        Afterwards others may still ring the bell: it stays.
        """
        poller = select.poll()
        poller.register(self._fd, select.POLLIN)
        poller.register(self._bell, select.POLLIN)
        poller.register(self._connection, 0)  # only that it was closed
        try:
            while True:
                self._turn(dict(poller.poll(self._pause_ms())))
        finally:
            os.close(self._fd)

    def _pause_ms(self) -> int | None:
        if self._again:
            return _CHANGING_MS
        return 0 if self._install_ahead() else None

    def _turn(self, ready: dict[int, int]) -> None:
        if self._connection.fileno() in ready:
            raise GoneError
        if self._bell in ready:
            os.eventfd_read(self._bell)
        if ready.get(self._fd, 0) & ~select.POLLIN:
            raise Invalid("the VMM's userfaultfd cannot be read")
        again, self._again = self._again, []
        for event in uffd.events(self._fd):
            self._take(event)
        while self._arrived:
            stretch, code = self._arrived.popleft()
            if code:
                raise OSError(code, os.strerror(code))
            again += self._awaited.pop(stretch)
        for page in again:
            self._answer(page)

    def _take(self, event: Event) -> None:
        if event.kind == uffd.REMOVE:
            self._installer.given_back(event.address, event.end)
            return
        offset = self._layout.offset(event.address) if event.kind == uffd.PAGEFAULT else None
        if offset is None:
            raise Invalid("the VMM's userfaultfd tells of something that is not the guest's memory", detail=str(event))
        start, end = self._around(offset)
        self._asked.update(dict.fromkeys(range(start // AROUND_BYTES, -(-end // AROUND_BYTES))))
        self._answer(offset // self._layout.page_bytes)

    def _answer(self, page: int) -> None:
        put = self._installer.answer(page)
        if put is Put.CHANGING:
            self._again.append(page)
        elif put is Put.MISSING:
            self._fetch(page)

    def _around(self, offset: int) -> tuple[int, int]:
        """The stretch of the file around this place that is fetched together."""
        size = max(AROUND_BYTES, self._layout.page_bytes, self._memory.block_bytes)
        start = offset // size * size
        return start, min(start + size, self._memory.size)

    def _fetch(self, page: int) -> None:
        start, end = self._around(page * self._layout.page_bytes)
        if start in self._awaited:
            self._awaited[start].add(page)
            return
        self._awaited[start] = {page}

        def then(code: int) -> None:
            self._arrived.append((start, code))
            self.nudge()

        self._memory.bring(start, end - start, then)

    def _install_ahead(self) -> bool:
        """Install a window that nobody has asked for; False if there is none to be installed now."""
        if self._next < len(self._ahead):
            window, blocks = self._ahead[self._next]
            ready = self._memory.has(blocks)
        else:
            window = self._next - len(self._ahead)
            ready = window < self._installer.windows and not self._memory.missing_bytes
        if not ready:
            return False
        try:
            self._next += self._installer.ahead(window)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            self._next = len(self._ahead) + self._installer.windows  # the guest may not need it
        return True


def _by_window(order: Numbers, blocks: int) -> list[tuple[int, Numbers]]:
    """Windows of so many blocks in the order in which they are needed first, each with its blocks that are."""
    windows = order // blocks
    sort = np.argsort(windows, kind="stable")
    numbers, begins = np.unique(windows[sort], return_index=True)
    parts = np.split(order[sort], begins[1:])
    return [(int(numbers[at]), parts[at]) for at in np.argsort(sort[begins])]
