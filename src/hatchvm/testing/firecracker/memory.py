"""A guest's memory: mapped as Firecracker maps it, and which pages the guest wrote, as KVM's log tells it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

PAGE: Final = 4096
_API, _REGISTER, _NEW = 0xC018AA3F, 0xC020AA00, 0xAA00
_UFFD_API: Final = 0xAA
_EVENT_REMOVE: Final = 1 << 3
_MISSING: Final = 1
_MAP_FIXED: Final = 0x10
_SYSCALL: Final = {"x86_64": 323, "aarch64": 282}
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Memory:
    """`dirty`: pages written since `clean`, None if they are not tracked."""

    def __init__(self, mapping: mmap.mmap, size: int, *, track: bool, align: int = PAGE, of_file: bool = False) -> None:
        """`mapping`: has room for `size` from an address on that is aligned."""
        self.size = size
        self._map = mapping
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        self._base = -self._start % align
        self._of_file = of_file
        self._track = track
        self._dirty: set[int] = set()
        self._held: list[object] = []

    @classmethod
    def anonymous(cls, size: int, *, track: bool) -> Memory:
        return cls(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), size, track=track)

    @classmethod
    def of_file(cls, path: str, size: int, *, track: bool) -> Memory:
        """Mapped privately: what changes in the file shows wherever the guest has not written. Raises OSError."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_size < size:
                raise OSError(errno.EINVAL, "the memory file is too short")
            mapping = mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            os.close(fd)
        return cls(mapping, size, track=track, of_file=True)

    @classmethod
    def of_faults(cls, path: str, size: int, *, track: bool, page_size: int = PAGE) -> Memory:
        """Anonymous; its missing pages are installed by whoever listens at that socket. Raises OSError.

        `page_size`: what the handler is told. The pages are small ones, so no host need have set large ones aside.
        """
        mapping = mmap.mmap(-1, size + page_size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory = cls(mapping, size, track=track, align=page_size)
        address = memory._start + memory._base
        uffd = _userfaultfd()
        fcntl.ioctl(uffd, _API, struct.pack("=QQQ", _UFFD_API, _EVENT_REMOVE, 0))
        fcntl.ioctl(uffd, _REGISTER, struct.pack("=QQQQ", address, size, _MISSING, 0))
        region = {"base_host_virt_addr": address, "size": size, "offset": 0}
        region |= {"page_size": page_size, "page_size_kib": page_size}
        handler = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        handler.connect(path)
        socket.send_fds(handler, [json.dumps([region]).encode()], [uffd])
        memory._held += [handler, uffd]  # Firecracker closes neither
        return memory

    def read(self, page: int) -> bytes:
        at = self._base + page * PAGE
        return self._map[at : at + PAGE]

    def write(self, page: int, content: bytes) -> None:
        at = self._base + page * PAGE
        self._map[at : at + PAGE] = content.ljust(PAGE, b"\0")
        self._dirty.add(page)

    def give_back(self, page: int) -> None:
        """What a balloon does with a page that the guest reports as free: it holds zeros from now on."""
        address = ctypes.c_void_p(self._start + self._base + page * PAGE)
        if self._of_file:
            protection = mmap.PROT_READ | mmap.PROT_WRITE
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
            _libc.mmap(address, ctypes.c_size_t(PAGE), protection, flags, -1, ctypes.c_long(0))
        else:
            _libc.madvise(address, ctypes.c_size_t(PAGE), mmap.MADV_DONTNEED)

    def save(self, path: str, *, diff: bool, full_after: int | None) -> None:
        """Into the file as it is, unless it has another size. The log starts afresh once all is on disk.

        `full_after`: the disk is full after that many pages. Raises OSError.
        """
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(fd).st_size != self.size:
                os.ftruncate(fd, 0)
            os.ftruncate(fd, self.size)
            pages = sorted(self._dirty) if diff and self._track else range(self.size // PAGE)
            self._dump(fd, pages, full_after)
            os.fsync(fd)
        finally:
            os.close(fd)
        self._dirty.clear()

    def _dump(self, fd: int, pages: Iterable[int], full_after: int | None) -> None:
        for done, page in enumerate(pages):
            if done == full_after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.pwrite(fd, self.read(page), page * PAGE)


def _userfaultfd() -> int:
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    device = Path("/dev/userfaultfd")
    if device.exists():
        with device.open("rb") as opened:
            return fcntl.ioctl(opened, _NEW, flags)
    fd = int(_libc.syscall(_SYSCALL[os.uname().machine], flags))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "userfaultfd")
    return fd
