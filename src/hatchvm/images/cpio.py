"""The initrd format: a `newc` cpio archive (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).

Written here because the `cpio` tool cannot make device nodes or root-owned files without being root.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable

from hatchvm.images.tree import Entry

_TRAILER = "TRAILER!!!"


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive, byte for byte the same for the same entries: owner 0:0, time 0."""
    parts = [_member(number, entry) for number, entry in enumerate(entries, start=1)]
    parts.append(_member(0, Entry(path=_TRAILER, mode=0)))
    return b"".join(parts)


def _member(inode: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if entry.kind == stat.S_IFDIR else 1
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(head + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
