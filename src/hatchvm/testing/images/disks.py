"""Disks with a partition table, as cloud images have one."""

from __future__ import annotations

import struct
import uuid
import zlib
from typing import Final

_SECTOR: Final = 512
_ENTRIES: Final = 128
_ENTRY_BYTES: Final = 128
_TABLE_SECTORS: Final = _ENTRIES * _ENTRY_BYTES // _SECTOR
FIRST_SECTOR: Final = 2048
_LINUX: Final = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le
_UNIQUE: Final = uuid.UUID(int=1).bytes_le


def gpt(sizes: list[int]) -> tuple[bytes, bytes, list[int]]:
    """(start of the disk, its end, where each partition begins) for partitions of so many bytes, one after another."""
    entries, starts, sector = b"", [], FIRST_SECTOR
    for size in sizes:
        starts.append(sector * _SECTOR)
        count = -(-size // _SECTOR)
        entries += struct.pack("<16s16sQQQ72s", _LINUX, _UNIQUE, sector, sector + count - 1, 0, b"")
        sector += -(-count // FIRST_SECTOR) * FIRST_SECTOR
    entries = entries.ljust(_ENTRIES * _ENTRY_BYTES, b"\0")
    last = sector + _TABLE_SECTORS
    protective = bytes(446) + struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xEE, b"\xff\xff\xff", 1, last) + bytes(48)
    head = protective + b"\x55\xaa" + _header(1, last, last, 2, entries) + entries
    return head, entries + _header(last, 1, last, sector, entries), starts


def _header(here: int, other: int, last: int, table: int, entries: bytes) -> bytes:
    def packed(checksum: int) -> bytes:
        usable = (FIRST_SECTOR, last - _TABLE_SECTORS - 1)
        head = struct.pack("<8sIIIIQQQQ16s", b"EFI PART", 0x10000, 92, checksum, 0, here, other, *usable, _UNIQUE)
        return head + struct.pack("<QIII", table, _ENTRIES, _ENTRY_BYTES, zlib.crc32(entries))

    return packed(zlib.crc32(packed(0))).ljust(_SECTOR, b"\0")
