"""A handler of page faults for one Firecracker, as simple as can be: each page from a file, when it is asked for."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hatchvm.base.sockets import listen

_PAGE: Final = 4096
_COPY: Final = 0xC028AA03
_PAGEFAULT, _REMOVE = 0x12, 0x15
_MESSAGE: Final = struct.Struct("=B7xQQ8x")  # a page fault: flags and address; a removal: start and end


@dataclass
class Handler:
    """`regions`: what the process told. Pages by their numbers in the file: those it asked for, those it gave back.

    `forgets`: the handler answers as if none had been given back.
    """

    memory: Path
    regions: list[dict[str, Any]] = field(default_factory=list)
    served: list[int] = field(default_factory=list)
    removed: set[int] = field(default_factory=set)
    forgets: bool = False

    def serve(self, listener: socket.socket, stop: int) -> None:
        with listener, self.memory.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
            if stop in select.select([listener.fileno(), stop], [], [])[0]:
                return
            process, _ = listener.accept()
            with process:
                message, (uffd,), _, _ = socket.recv_fds(process, 1 << 16, 1)
                self.regions = json.loads(message)
                with os.fdopen(uffd, "rb", buffering=0):
                    while stop not in select.select([uffd, stop], [], [])[0]:
                        with contextlib.suppress(BlockingIOError):  # a pause takes a processor's question back
                            self._answer(uffd, os.read(uffd, _MESSAGE.size), content)

    def _answer(self, uffd: int, message: bytes, content: mmap.mmap) -> None:
        event, first, second = _MESSAGE.unpack(message)
        if event == _REMOVE:
            self.removed.update(self._offset(at) // _PAGE for at in range(first, second, _PAGE))
        elif event == _PAGEFAULT:
            self._install(uffd, second // _PAGE * _PAGE, content)

    def _offset(self, address: int) -> int:
        """In the file."""
        region = next(each for each in self.regions if 0 <= address - each["base_host_virt_addr"] < each["size"])
        return int(address - region["base_host_virt_addr"] + region["offset"])

    def _install(self, uffd: int, page: int, content: mmap.mmap) -> None:
        offset = self._offset(page)
        source = ctypes.c_char.from_buffer(content, offset)
        if offset // _PAGE in self.removed and not self.forgets:
            source = ctypes.c_char.from_buffer(bytearray(_PAGE))
        with contextlib.suppress(FileExistsError, ProcessLookupError):  # two threads met there, or all are gone
            fcntl.ioctl(uffd, _COPY, struct.pack("=QQQQq", page, ctypes.addressof(source), _PAGE, 0, 0))
        del source
        self.served.append(offset // _PAGE)


@contextlib.contextmanager
def serving(memory: Path, at: Path) -> Iterator[Handler]:
    """It listens at that path while the block runs. The process must have ended, or run on whole memory, after it."""
    handler = Handler(memory)
    told, stop = os.pipe()
    thread = threading.Thread(target=handler.serve, args=(listen(at, backlog=1), told))
    thread.start()
    try:
        yield handler
    finally:
        os.write(stop, b"x")
        thread.join()
        os.close(told)
        os.close(stop)
