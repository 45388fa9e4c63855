"""Joining what a guest has written with the memory that it was restored from.

A capture leaves a sparse file of the memory's size that has data where the guest wrote. The memory file takes it over
piece by piece; where the file system can share blocks nothing is copied. Doing it twice is doing it once, so it may be
cut off anywhere: the changes are emptied last, and Firecracker adds to what it finds there.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

import numpy as np

from hatchvm.base import copying
from hatchvm.ports.vmm import Pages

_PAGE: Final = 4096


def join(memory: Path, changes: Path) -> Pages:
    """Bring the changes into the memory file and empty them; the pages that they held, ascending. Raises OSError.

    Both files stay the files that they are: the process that the guest runs in has them open, or will open them.
    """
    fd = os.open(changes, os.O_RDWR | os.O_CLOEXEC)
    try:
        pieces = list(copying.data(fd))
        _copy(fd, memory, pieces)
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)
    pages = [np.arange(start // _PAGE, -(-end // _PAGE), dtype=np.uint32) for start, end in pieces]
    return np.concatenate(pages) if pages else np.zeros(0, np.uint32)


def _copy(changes: int, memory: Path, pieces: list[tuple[int, int]]) -> None:
    target = os.open(memory, os.O_WRONLY | os.O_CLOEXEC)
    try:
        for start, end in pieces:
            if copying.copy_range(changes, target, start, end) < end:
                raise OSError(errno.EIO, "the changed pages ended early")
    finally:
        os.close(target)
