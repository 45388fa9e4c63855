"""userfaultfd(2), as much of it as whoever answers another process's page faults needs.

Source of the numbers and layouts: `include/uapi/linux/userfaultfd.h` (the same on every 64-bit architecture).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from enum import Enum, auto
from pathlib import Path
from typing import Final, NamedTuple

PAGEFAULT: Final = 0x12
REMOVE: Final = 0x15

_COPY: Final = 0xC028AA03
_ZEROPAGE: Final = 0xC020AA04
_COPY_ARGS: Final = struct.Struct("=QQQQq")  # to, from, length, mode, what was copied or -errno
_ZERO_ARGS: Final = struct.Struct("=QQQq")  # to, length, mode, what was made or -errno
_MESSAGE: Final = struct.Struct("=BxHI3Q")
#: Messages read at once.
_BATCH: Final = 64
_LINK: Final = "anon_inode:[userfaultfd]"


class Event(NamedTuple):
    """PAGEFAULT at `address`, or REMOVE of the range from `address` to `end`; others are for whoever asked for them."""

    kind: int
    address: int
    end: int


class Outcome(Enum):
    DONE = auto()
    HERE = auto()  # the first page is there already
    CHANGING = auto()  # an event waits to be read first
    GONE = auto()  # the process has ended


def is_one(fd: int) -> bool:
    """Whether a descriptor that somebody sent is a userfaultfd."""
    return str(Path(f"/proc/self/fd/{fd}").readlink()) == _LINK


def events(fd: int) -> Iterator[Event]:
    """What has happened and was not read yet. `fd` is non-blocking."""
    buffer = bytearray(_BATCH * _MESSAGE.size)
    try:
        length = os.readv(fd, (buffer,))
    except BlockingIOError:
        return
    for kind, _, _, first, second, _ in _MESSAGE.iter_unpack(buffer[:length]):
        # A fault is (flags, address), a removal (start, end).
        yield Event(kind, second, second) if kind == PAGEFAULT else Event(kind, first, second)


def copy(fd: int, to: int, source: int, length: int) -> tuple[Outcome, int]:
    """Install pages at `to` from our own address `source`, and wake whoever waits for them; also how many bytes were.

    Raises OSError: ENOMEM if there is no page for it, ENOENT for an address that is not registered.
    """
    return _call(fd, _COPY, bytearray(_COPY_ARGS.pack(to, source, length, 0, 0)))


def zero(fd: int, to: int, length: int) -> tuple[Outcome, int]:
    """As `copy`, pages of zeros. Not for huge pages."""
    return _call(fd, _ZEROPAGE, bytearray(_ZERO_ARGS.pack(to, length, 0, 0)))


_OUTCOMES: Final = {
    errno.EEXIST: Outcome.HERE,
    errno.EAGAIN: Outcome.CHANGING,
    errno.ESRCH: Outcome.GONE,
}


def _call(fd: int, request: int, arguments: bytearray) -> tuple[Outcome, int]:
    try:
        fcntl.ioctl(fd, request, arguments, True)
    except OSError as error:
        # The last field is what was done before it stopped; the first thing not done says why, if one asks again.
        done = max(0, int.from_bytes(arguments[-8:], "little", signed=True))
        if done:
            return Outcome.DONE, done
        if error.errno not in _OUTCOMES:
            raise
        return _OUTCOMES[error.errno], 0
    return Outcome.DONE, int.from_bytes(arguments[-8:], "little", signed=True)
