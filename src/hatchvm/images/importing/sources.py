"""What a file or folder from a stranger is, told by what is in it, never by its name."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final, Literal

from hatchvm.base.errors import Invalid
from hatchvm.images.formats import HEAD_BYTES
from hatchvm.images.importing import archive
from hatchvm.images.importing.streams import Allowance, Unpacked, is_packed

Kind = Literal["container", "rootfs", "disk"]

#: What the first file of a container archive is called: OCI's names, docker's, and those that docker once used.
_CONTAINER: Final = re.compile(
    r"blobs/sha256/[0-9a-f]{64}|index\.json|oci-layout|manifest\.json|repositories"
    r"|[0-9a-f]{64}(\.json|\.tar|/(json|VERSION|layer\.tar))"
)
_PEEKED_ENTRIES: Final = 100
_USTAR: Final = (0x101, b"ustar")
_EXT4: Final = (0x438, b"\x53\xef")
_BOOT_SECTOR: Final = (0x1FE, b"\x55\xaa")
_QCOW2: Final = b"QFI\xfb"
_PEEK_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Source:
    """`packed`: it is a tar archive inside gzip, zstd, xz or bzip2."""

    path: Path
    kind: Kind
    packed: bool = False


def recognise(path: Path) -> Source:
    """What is at `path`. Raises Invalid if it is nothing that can be imported."""
    try:
        if path.is_dir():
            return _folder(path)
        with open_file(path) as file:
            return _file(path, file)
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}") from error


def open_file(path: Path) -> BinaryIO:
    """A regular file, for reading. Raises OSError; Invalid if it is something else."""
    # Opening a FIFO must not wait for a writer.
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Invalid(f"{path} is not a regular file")
    return os.fdopen(handle, "rb")


def _folder(path: Path) -> Source:
    if (path / "index.json").is_file():
        return Source(path, "container")
    raise Invalid(
        f"{path} is a folder without index.json, so it is no OCI image layout; pack a root file system with tar"
    )


def _file(path: Path, file: BinaryIO) -> Source:
    head = file.read(max(HEAD_BYTES, 2048))
    if head.startswith(_QCOW2):
        return Source(path, "disk")
    packed = is_packed(head)
    # Either mark may stand inside a tar archive, too; the oldest tar archives have no mark of their own.
    if not packed and not _has(head, _USTAR) and (_has(head, _EXT4) or _has(head, _BOOT_SECTOR)):
        return Source(path, "disk")
    file.seek(0)
    try:
        first = _first_file(file)
    except Invalid as error:
        known = (
            "neither a container image, nor a root file system's tar archive, nor a qcow2 or raw disk with ext4 on it"
        )
        raise Invalid(f"{path} is {known}", detail=error.message) from error
    return Source(path, "container" if _CONTAINER.fullmatch(first) else "rootfs", packed)


def _first_file(file: BinaryIO) -> str:
    """The name of a tar archive's first entry that is not a folder."""
    reader = Unpacked(file, Allowance(_PEEK_BYTES))
    for member, _ in islice(archive.members(reader), _PEEKED_ENTRIES):
        if not member.isdir():
            return member.name.removeprefix("./")
    return ""


def _has(head: bytes, magic: tuple[int, bytes]) -> bool:
    at, expected = magic
    return head[at : at + len(expected)] == expected
