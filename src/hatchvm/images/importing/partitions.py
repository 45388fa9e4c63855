"""Partition tables, to find file systems: GPT (UEFI specification, chapter 5) and primary MBR entries."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

_SECTOR: Final = 512
_MAX_ENTRIES: Final = 1024
_MIN_ENTRY_BYTES: Final = 128
_MAX_ENTRY_BYTES: Final = 4096
_MBR_ENTRIES: Final = 0x1BE
_EXT4_MAGIC: Final = (0x438, b"\x53\xef")


@dataclass(frozen=True, slots=True)
class Partition:
    """`number` as Linux counts: `/dev/vda1` is 1; 0 is the whole disk. In bytes."""

    number: int
    start: int
    size: int

    @property
    def device(self) -> str:
        """What a guest calls it."""
        return f"/dev/vda{self.number or ''}"


def ext4_partitions(disk: BinaryIO, size: int) -> list[Partition]:
    """Where on the disk of `size` bytes an ext2, ext3 or ext4 is: in its partitions, or all over it."""
    whole = Partition(0, 0, size)
    if _is_ext4(disk, whole):
        return [whole]
    return [part for part in _partitions(disk) if part.start + part.size <= size and _is_ext4(disk, part)]


def _partitions(disk: BinaryIO) -> Iterator[Partition]:
    head = _at(disk, 0, 2 * _SECTOR)
    if head[_SECTOR : _SECTOR + 8] == b"EFI PART":
        yield from _gpt(disk, head[_SECTOR:])
    elif head[_SECTOR - 2 : _SECTOR] == b"\x55\xaa":
        for index in range(4):
            start, count = struct.unpack_from("<II", head, _MBR_ENTRIES + 16 * index + 8)
            if start and count:
                yield Partition(index + 1, start * _SECTOR, count * _SECTOR)


def _gpt(disk: BinaryIO, header: bytes) -> Iterator[Partition]:
    table, count, entry_bytes = struct.unpack_from("<QII", header, 72)
    if not _MIN_ENTRY_BYTES <= entry_bytes <= _MAX_ENTRY_BYTES or table > 2**40:
        return
    for index in range(min(count, _MAX_ENTRIES)):
        entry = _at(disk, table * _SECTOR + index * entry_bytes, _MIN_ENTRY_BYTES)
        if len(entry) < _MIN_ENTRY_BYTES:
            return
        first, last = struct.unpack_from("<QQ", entry, 32)
        if any(entry[:16]) and 0 < first <= last < 2**50:
            yield Partition(index + 1, first * _SECTOR, (last - first + 1) * _SECTOR)


def _is_ext4(disk: BinaryIO, part: Partition) -> bool:
    at, magic = _EXT4_MAGIC
    return _at(disk, part.start + at, len(magic)) == magic


def _at(disk: BinaryIO, position: int, size: int) -> bytes:
    disk.seek(position)
    return disk.read(size)
