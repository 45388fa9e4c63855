"""Telling kernels and disks apart by their first bytes, and refusing disks that reach outside themselves."""

from __future__ import annotations

import struct
from typing import Final

from hatchvm.domain.image import DiskFormat

#: `is_kernel` and `disk_format` need this much of a file, or all of it.
HEAD_BYTES: Final = 1024

_ELF: Final = b"\x7fELF"
#: Offset and bytes: the boot sector's signature, and the kernel's own.
_BZIMAGE: Final = ((0x1FE, b"\x55\xaa"), (0x202, b"HdrS"))
_QCOW2: Final = b"QFI\xfb"
_EXTERNAL_DATA: Final = 1 << 2


def is_kernel(head: bytes) -> bool:
    """True for a Linux bzImage and for an ELF file, such as a vmlinux."""
    return head.startswith(_ELF) or all(head[at : at + len(magic)] == magic for at, magic in _BZIMAGE)


def disk_format(head: bytes) -> DiskFormat:
    """The format of a root disk: qcow2 if it says so, else raw.

    Raises ValueError, with the end of a sentence, for a qcow2 file that makes QEMU open other files, or is unusable.
    Layout: QEMU's docs/interop/qcow2.txt.
    """
    if not head.startswith(_QCOW2):
        return "raw"
    if len(head) < 104:
        raise ValueError("is a qcow2 file that is cut short")
    version, backing_file = struct.unpack_from(">IQ", head, 4)
    (encryption,) = struct.unpack_from(">I", head, 32)
    (incompatible,) = struct.unpack_from(">Q", head, 72)
    if version not in (2, 3):
        raise ValueError(f"is a qcow2 file of the unknown version {version}")
    if backing_file:
        raise ValueError("is a qcow2 file with a backing file; flatten it with `qemu-img convert` first")
    if version == 3 and incompatible & _EXTERNAL_DATA:
        raise ValueError("is a qcow2 file with an external data file; flatten it with `qemu-img convert` first")
    if encryption:
        raise ValueError("is an encrypted qcow2 file")
    return "qcow2"
