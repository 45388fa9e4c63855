"""Copies of large files: sharing blocks where the file system can, and never writing what is a hole."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_FICLONE: Final = 0x40049409  # linux/fs.h
#: What a file system says that cannot share blocks, or cannot copy to this other one.
_CANNOT: Final = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS})
_CHUNK: Final = 16 * 1024 * 1024


def copy_sparse(reader: int, target: Path) -> None:
    """Make the new file `target`, durable, with the content of the open file `reader`. Raises OSError."""
    with target.open("xb") as file:
        writer = file.fileno()
        if not _reflink(reader, writer):
            os.truncate(writer, os.fstat(reader).st_size)
            for start, end in data(reader):
                copy_range(reader, writer, start, end)
        os.fsync(writer)


def _reflink(reader: int, writer: int) -> bool:
    try:
        fcntl.ioctl(writer, _FICLONE, reader)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True


def data(reader: int) -> Iterator[tuple[int, int]]:
    """(start, end) of each part that is not a hole. Raises OSError."""
    end = 0
    while True:
        try:
            start = os.lseek(reader, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        end = os.lseek(reader, start, os.SEEK_HOLE)
        yield start, end


def copy_range(reader: int, writer: int, start: int, end: int) -> int:
    """Copy this part to the same place; where the file that is read ended, if that came first. Raises OSError."""
    while start < end:
        length = min(_CHUNK, end - start)
        try:
            copied = os.copy_file_range(reader, writer, length, start, start)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            copied = os.pwrite(writer, os.pread(reader, length, start), start)
        if copied == 0:  # the file became shorter meanwhile
            break
        start += copied
    return start
