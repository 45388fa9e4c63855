"""A process with a guest's memory behind a userfaultfd, as a VMM makes it, that does what a test tells it.

Run as a program it is that process. A line of JSON tells it how to map the memory, then each line is one thing to do;
it answers with a length of 8 bytes and what it has read. Memory is read outside of the interpreter's lock, so that
threads wait for different pages at once.
"""

from __future__ import annotations

import array
import ctypes
import fcntl
import json
import mmap
import os
import platform
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from hatchvm.base.sockets import short_name

PAGE: Final = 4096
_SYSCALL: Final = {"x86_64": 323, "aarch64": 282}
_API: Final = 0xC018AA3F
_REGISTER: Final = 0xC020AA00
_EVENT_REMOVE: Final = 1 << 3
_MAP_HUGE: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000  # MAP_HUGETLB

_libc = ctypes.CDLL(None, use_errno=True)
_libc.memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def make() -> int:
    """A userfaultfd as VMMs make them. Raises OSError where that is not allowed."""
    fd = int(_libc.syscall(_SYSCALL[platform.machine()], os.O_CLOEXEC | os.O_NONBLOCK))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "userfaultfd")
    fcntl.ioctl(fd, _API, bytearray(struct.pack("=QQQ", 0xAA, _EVENT_REMOVE, 0)), True)
    return fd


def trouble() -> str | None:
    """None if a process may make a userfaultfd here, else a sentence."""
    try:
        os.close(make())
    except OSError as error:
        return f"no userfaultfd here: {error.strerror}"
    return None


class Guest:
    """The process, from outside. `regions`: (offset in the memory, size), each mapped somewhere of its own.

    `message`: what to send instead of the truth; `send`: descriptors of /dev/null to send instead of the userfaultfd.
    """

    def __init__(
        self,
        path: Path,
        regions: Sequence[tuple[int, int]],
        *,
        page_bytes: int = PAGE,
        message: str | None = None,
        send: int | None = None,
    ) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
        )
        self._tell({"path": str(path), "regions": list(regions), "page": page_bytes, "message": message, "send": send})

    def read(self, offset: int, length: int) -> bytes:
        return self._do({"read": [[[offset, length]]]})

    def read_at_once(
        self, spans: Sequence[Sequence[tuple[int, int]]], meanwhile: Sequence[tuple[int, int]] = ()
    ) -> bytes:
        """Each inner sequence by a thread of its own; the answer is in the order of the argument.

        `meanwhile`: what is given back, one after the other.
        """
        return self._do({"read": spans, "meanwhile": meanwhile})

    def write(self, offset: int, data: bytes) -> None:
        self._do({"write": offset, "data": data.hex()})

    def give_back(self, offset: int, length: int) -> None:
        """As a balloon does."""
        self._do({"drop": [offset, length]})

    def resident(self) -> bytes:
        """A byte for each page of the regions: 1 if it is there. Touches none."""
        return self._do({"resident": True})

    def start(self, request: dict[str, Any]) -> None:
        """Let it begin something that may wait."""
        self._tell(request)

    def ended(self) -> int:
        """Its exit status, once it has ended."""
        return self.child.wait(30)

    def _do(self, request: dict[str, Any]) -> bytes:
        self._tell(request)
        return self.answer()

    def answer(self) -> bytes:
        assert self.child.stdout
        head = self.child.stdout.read(8)
        if len(head) < 8:
            raise EOFError("the guest has ended")
        return self.child.stdout.read(int.from_bytes(head, "little"))

    def _tell(self, request: dict[str, Any]) -> None:
        assert self.child.stdin
        self.child.stdin.write(json.dumps(request).encode() + b"\n")
        self.child.stdin.flush()


@contextmanager
def guest(path: Path, regions: Sequence[tuple[int, int]], **how: Any) -> Iterator[Guest]:
    """A guest whose memory is served by whoever listens at `path`; afterwards it is gone."""
    made = Guest(path, regions, **how)
    try:
        yield made
    finally:
        made.child.kill()
        made.child.communicate()


class _Memory:
    """Inside: mapped regions, and what to do with them."""

    def __init__(self, setup: dict[str, Any]) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS if setup["page"] == PAGE else _MAP_HUGE
        self._page = setup["page"]
        self._regions = [(offset, size, mmap.mmap(-1, size, flags=flags)) for offset, size in setup["regions"]]
        self._addresses = [ctypes.addressof(ctypes.c_char.from_buffer(region)) for *_, region in self._regions]
        self._uffd = make()
        for (_, size, _), address in zip(self._regions, self._addresses, strict=True):
            fcntl.ioctl(self._uffd, _REGISTER, bytearray(struct.pack("=QQQQ", address, size, 1, 0)), True)
        self._socket = socket.socket(socket.AF_UNIX)
        with short_name(Path(setup["path"])) as name:
            self._socket.connect(name)
        message = setup["message"] if setup["message"] is not None else self._message()
        nulls = [os.open(os.devnull, os.O_RDONLY) for _ in range(setup["send"] or 0)]
        fds = array.array("i", [self._uffd] if setup["send"] is None else nulls)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if fds else []
        self._socket.sendmsg([message.encode()], ancillary)

    def _message(self) -> str:
        regions = zip(self._regions, self._addresses, strict=True)
        return json.dumps(
            [
                {
                    "base_host_virt_addr": address,
                    "size": size,
                    "offset": offset,
                    "page_size": self._page,
                    "page_size_kib": self._page,
                }
                for (offset, size, _), address in regions
            ]
        )

    def do(self, request: dict[str, Any]) -> bytes:
        if "read" in request:
            with ThreadPoolExecutor(len(request["read"])) as pool:
                parts = pool.map(self._read, request["read"])
                for offset, length in request.get("meanwhile", ()):
                    self._give_back(offset, length)
                return b"".join(parts)
        if "write" in request:
            region, _, at = self._place(request["write"])
            data = bytes.fromhex(request["data"])
            region[at : at + len(data)] = data
        if "drop" in request:
            self._give_back(*request["drop"])
        return self._resident() if "resident" in request else b""

    def _give_back(self, offset: int, length: int) -> None:
        region, _, at = self._place(offset)
        region.madvise(mmap.MADV_DONTNEED, at, length)

    def _place(self, offset: int) -> tuple[mmap.mmap, int, int]:
        for (start, size, region), address in zip(self._regions, self._addresses, strict=True):
            if start <= offset < start + size:
                return region, address, offset - start
        raise IndexError(offset)

    def _read(self, spans: Sequence[tuple[int, int]]) -> bytes:
        parts = []
        for offset, length in spans:
            _, address, at = self._place(offset)
            buffer = ctypes.create_string_buffer(length)
            _libc.memcpy(buffer, address + at, length)
            parts.append(buffer.raw)
        return b"".join(parts)

    def _resident(self) -> bytes:
        with Path("/proc/self/pagemap").open("rb", buffering=0) as table:
            entries = b""
            for (_, size, _), address in zip(self._regions, self._addresses, strict=True):
                entries += os.pread(table.fileno(), size // PAGE * 8, address // PAGE * 8)
        return bytes(entries[at + 7] >> 7 for at in range(0, len(entries), 8))


def main() -> None:
    lines = sys.stdin.buffer
    memory = _Memory(json.loads(lines.readline()))
    for line in lines:
        answer = memory.do(json.loads(line))
        sys.stdout.buffer.write(len(answer).to_bytes(8, "little") + answer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
