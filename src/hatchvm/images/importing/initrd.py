"""Looking for a kernel module in an initrd: cpio archives one after another, the last one usually compressed."""

from __future__ import annotations

from typing import BinaryIO, Final

from hatchvm.base.errors import Invalid
from hatchvm.base.units import MIB
from hatchvm.images.importing.streams import CHUNK, Allowance, Reader, Unpacked, is_packed

_CPIO: Final = b"070701"
_HEADER_BYTES: Final = 110
_MAX_BYTES: Final = 2048 * MIB
_MAX_NAME_BYTES: Final = 4096
_TRAILER: Final = b"TRAILER!!!"


def has_module(initrd: BinaryIO, name: str) -> bool | None:
    """True if a file of the initrd is the module `name`; None if that cannot be told: unknown compression, damage."""
    wanted = f"{name}.ko".encode()
    try:
        return _search(initrd, wanted)
    except (Invalid, ValueError):
        return None


def _search(initrd: BinaryIO, wanted: bytes) -> bool | None:
    while True:
        start = initrd.tell()
        head = initrd.read(len(_CPIO))
        if not head:
            return False
        if head != _CPIO:
            # A file's name stands in the archive as it is.
            return _mentioned(Unpacked(initrd, Allowance(_MAX_BYTES), start), wanted) if is_packed(head) else None
        initrd.seek(start)
        if _plain_has(initrd, wanted):
            return True


def _plain_has(initrd: BinaryIO, wanted: bytes) -> bool:
    """Reads one archive that is not compressed, and the zero bytes after it."""
    while True:
        header = initrd.read(_HEADER_BYTES)
        if not header.startswith(_CPIO) or len(header) < _HEADER_BYTES:
            raise ValueError("not a cpio header")
        size, name_bytes = int(header[54:62], 16), int(header[94:102], 16)
        if name_bytes > _MAX_NAME_BYTES:
            raise ValueError("a name that is too long")
        name = initrd.read(name_bytes + -(_HEADER_BYTES + name_bytes) % 4).rstrip(b"\0")
        initrd.seek(size + -size % 4, 1)
        if wanted in name:
            return True
        if name == _TRAILER:
            break
    while (byte := initrd.read(1)) == b"\0":
        pass
    initrd.seek(-len(byte), 1)
    return False


def _mentioned(reader: Reader, wanted: bytes) -> bool:
    tail = b""
    while data := reader.read(CHUNK):
        if wanted in tail + data:
            return True
        tail = data[-len(wanted) :]
    return False
