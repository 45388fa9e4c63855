"""The local files of a snapshot: finding the data in sparse ones, and putting blocks where they belong."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hatchvm.base.errors import Conflict, Corrupt, Exhausted, Unavailable, Unsupported
from hatchvm.base.files import NO_ROOM
from hatchvm.snapshots.layout import MAX_STREAM_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """An open file to be stored. It must not change until that is done."""

    name: str
    path: Path
    fd: int
    size: int

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer from there; what lies beyond the end of the file is zeros. Raises Conflict if it shrank."""
        wanted = min(len(buffer), self.size - offset)
        with local_errors(self.path):
            count = os.preadv(self.fd, [buffer[:wanted]], offset)
        if count != wanted:
            raise Conflict(f"the {self.name} file changed while it was being stored")
        buffer[wanted:] = bytes(len(buffer) - wanted)

    def read_blocks(self, buffer: memoryview, blocks: npt.NDArray[np.integer[Any]], block_bytes: int) -> None:
        """Fill the buffer with blocks of these ascending numbers, one after the other."""
        breaks = np.flatnonzero(np.diff(blocks.astype(np.int64)) != 1) + 1
        for begin, end in pairwise([0, *breaks.tolist(), len(blocks)]):
            self.read_into(buffer[begin * block_bytes : end * block_bytes], int(blocks[begin]) * block_bytes)

    def data(self) -> Iterator[tuple[int, int]]:
        """Ascending (begin, end) in bytes of what is not holes of the file."""
        offset = 0
        while offset < self.size and (begin := self._seek_data(offset)) is not None:
            with local_errors(self.path):
                offset = min(os.lseek(self.fd, begin, os.SEEK_HOLE), self.size)
            yield begin, offset

    def _seek_data(self, offset: int) -> int | None:
        """Where data begins at or after `offset`, or None if only a hole follows."""
        with local_errors(self.path):
            try:
                return os.lseek(self.fd, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return None
                raise


@contextlib.contextmanager
def opened(name: str, path: Path) -> Iterator[Source]:
    """`path` as a source. Raises Corrupt if it is missing, Unsupported if it is too large."""
    with local_errors(path):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise Corrupt(f"the {name} file of the snapshot is missing", detail=str(path)) from error
    try:
        size = os.fstat(fd).st_size
        if size > MAX_STREAM_BYTES:
            raise Unsupported(f"the {name} is too large to be stored")
        yield Source(name=name, path=path, fd=fd, size=size)
    finally:
        os.close(fd)


@contextlib.contextmanager
def local_errors(path: Path) -> Iterator[None]:
    """What the host's file system says, as our errors."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            raise Exhausted("the disk of this host is full", detail=f"{path}: {error}") from error
        raise Unavailable("the files of the snapshot cannot be used", detail=f"{path}: {error}") from error


@contextlib.contextmanager
def created(path: Path, size: int) -> Iterator[int]:
    """A descriptor of a new file of `size` zero bytes that take no room; an older file there is replaced."""
    with local_errors(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with local_errors(path):
            os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)


def write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
