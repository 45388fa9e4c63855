"""What serving page faults needs of a guest's memory; and memory that needs no fetching."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from hatchvm.pager.regions import PAGE
from hatchvm.pager.volume import Blocks, Numbers


class Memory(Protocol):
    """See `volume.Volume`, which is one."""

    @property
    def size(self) -> int: ...

    @property
    def block_bytes(self) -> int: ...

    @property
    def missing_bytes(self) -> int: ...

    def look(self, start: int, end: int, unit: int) -> tuple[Blocks, Blocks]: ...

    def has(self, blocks: Numbers) -> bool: ...

    def load(self, start: int, buffer: memoryview) -> None: ...

    def bring(self, offset: int, length: int, then: Callable[[int], None]) -> None: ...


class Whole:
    """A `Memory` whose file is all here. It is only read. Raises OSError if it cannot be."""

    block_bytes = PAGE
    missing_bytes = 0

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size

    def look(self, start: int, end: int, unit: int) -> tuple[Blocks, Blocks]:
        """All is here. Nobody knows what of it is zeros."""
        units = -(-(end - start) // unit)
        return np.ones(units, np.bool_), np.zeros(units, np.bool_)

    def has(self, blocks: Numbers) -> bool:
        return True

    def load(self, start: int, buffer: memoryview) -> None:
        """Fill `buffer` with what lies at `start`. Raises OSError."""
        if os.preadv(self._fd, (buffer,), start) != len(buffer):
            raise OSError(errno.EIO, "the file was cut")

    def bring(self, offset: int, length: int, then: Callable[[int], None]) -> None:
        then(0)
