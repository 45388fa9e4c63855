"""The kernel's FUSE protocol, as much of it as a flat folder of a few files needs, spoken over /dev/fuse.

Requests are read by a few threads. A file answers at once or later, from whatever thread then has what was missing: a
request that waits holds nobody up. Source of the layouts: `include/uapi/linux/fuse.h`, protocol 7.31 (Linux 5.4).
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Final, Protocol

#: The most a READ or WRITE may carry: what `MAX_PAGES` allows.
MAX_BYTES: Final = 1024 * 1024
_PAGE: Final = 4096
_MINOR: Final = 31
#: Around a page that a guest touches. More brings frames that nobody needs, less costs more requests (measured).
_READAHEAD: Final = 64 * 1024
#: Requests under way before the kernel holds back readahead: waiting for the store must not stop the rest.
_BACKGROUND: Final = 1024
_FLAGS: Final = 1 << 0 | 1 << 5 | 1 << 22  # ASYNC_READ, BIG_WRITES, MAX_PAGES
_KEEP_CACHE: Final = 1 << 1
_SET_SIZE: Final = 1 << 3
_FOREVER_S: Final = 24 * 3600
_ROOT: Final = 1

_IN: Final = struct.Struct("=IIQQIIIHH")  # length, opcode, unique, node, uid, gid, pid, extensions, padding
_OUT: Final = struct.Struct("=IiQ")  # length, -errno, unique
_INIT_IN: Final = struct.Struct("=IIII")
_INIT_OUT: Final = struct.Struct("=IIIIHHIIHHIIH11H")
_ATTR: Final = struct.Struct("=QQQQQQIIIIIIIIII")
_ATTR_OUT: Final = struct.Struct("=QII")
_ENTRY_OUT: Final = struct.Struct("=QQQQII")
_OPEN_OUT: Final = struct.Struct("=QII")
_READ_IN: Final = struct.Struct("=QQIIQII")  # handle, offset, size, …
_WRITE_IN: Final = struct.Struct("=QQIIQII")
_WRITE_OUT: Final = struct.Struct("=II")
_SETATTR_IN: Final = struct.Struct("=IIQQ")  # valid, padding, handle, size, …
_FALLOCATE_IN: Final = struct.Struct("=QQQII")
_STATFS_OUT: Final = struct.Struct("=QQQQQIIII6I")


class _Op(IntEnum):
    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    ACCESS = 34
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43


class Answer:
    """What one request is answered with, once, from any thread."""

    __slots__ = ("_fd", "_given", "_unique")

    def __init__(self, fd: int, unique: int, given: Callable[[int], None]) -> None:
        self._fd = fd
        self._unique = unique
        self._given = given

    def data(self, *parts: bytes) -> None:
        """Success, with what was asked for."""
        self._send(0, parts)

    def wrote(self, count: int) -> None:
        self._send(0, (_WRITE_OUT.pack(count, 0),))

    def error(self, number: int) -> None:
        self._send(-number, ())

    def _send(self, code: int, parts: Sequence[bytes]) -> None:
        self._given(self._unique)
        length = _OUT.size + sum(len(part) for part in parts)
        try:
            os.writev(self._fd, (_OUT.pack(length, code, self._unique), *parts))
        except OSError as error:
            # ENOENT: the kernel gave the request up, or it was answered as interrupted. ENODEV: unmounted.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise RuntimeError(f"the kernel refused an answer: {error}") from error


class File(Protocol):
    """One file. Every method answers exactly once, now or later; none raises anything but OSError."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int, answer: Answer) -> None: ...

    def write(self, offset: int, data: memoryview, answer: Answer) -> None:
        """`data` is only valid during the call."""

    def resize(self, size: int, done: Callable[[int], None]) -> None:
        """Cut or lengthen; calls `done` with 0 or an errno."""

    def allocate(self, offset: int, length: int, mode: int, answer: Answer) -> None:
        """As fallocate(2)."""

    def sync(self, answer: Answer) -> None:
        """Make durable what was written before."""


class Server:
    """Serves `files` (name -> file) on an open /dev/fuse until it is unmounted."""

    def __init__(self, fd: int, files: Mapping[str, File]) -> None:
        self._fd = fd
        self._names = {name.encode(): _ROOT + 1 + number for number, name in enumerate(files)}
        self._nodes = dict(enumerate(files.values(), _ROOT + 1))
        self._waiting: dict[int, Answer] = {}
        self._uid, self._gid, self._now = os.getuid(), os.getgid(), int(time.time())  # noqa: TID251 - a file's age
        self._handlers: dict[int, Callable[[int, memoryview, Answer], None]] = {
            _Op.INIT: self._init,
            _Op.LOOKUP: self._lookup,
            _Op.GETATTR: self._getattr,
            _Op.SETATTR: self._setattr,
            _Op.OPEN: lambda node, body, answer: answer.data(_OPEN_OUT.pack(0, _KEEP_CACHE, 0)),
            _Op.READ: self._read,
            _Op.WRITE: self._write,
            _Op.FSYNC: lambda node, body, answer: self._file(node).sync(answer),
            _Op.FALLOCATE: self._fallocate,
            _Op.STATFS: lambda node, body, answer: answer.data(_STATFS_OUT.pack(*[0] * 5, _PAGE, 255, _PAGE, *[0] * 7)),
        }
        for empty in (_Op.RELEASE, _Op.FLUSH, _Op.ACCESS, _Op.DESTROY):
            self._handlers[empty] = lambda node, body, answer: answer.data()

    def run(self, threads: int) -> None:
        """Serve with so many threads; returns when the file system is unmounted or `/dev/fuse` closed."""
        others = [threading.Thread(target=self._loop, name=f"fuse {n}", daemon=True) for n in range(1, threads)]
        for thread in others:
            thread.start()
        self._loop()
        for thread in others:
            thread.join()

    def _loop(self) -> None:
        buffer = bytearray(MAX_BYTES + _PAGE)
        view = memoryview(buffer)
        while True:
            try:
                length = os.readv(self._fd, (buffer,))
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINTR, errno.EAGAIN):  # interrupted before we read it
                    continue
                return
            self._handle(view[:length])

    def _handle(self, message: memoryview) -> None:
        _, opcode, unique, node, *_ = _IN.unpack_from(message)
        body = message[_IN.size :]
        if opcode in (_Op.FORGET, _Op.BATCH_FORGET):  # never answered; our nodes live as long as we do
            return
        if opcode == _Op.INTERRUPT:
            self._interrupt(int.from_bytes(body[:8], "little"))
            return
        answer = Answer(self._fd, unique, self._given)
        handler = self._handlers.get(opcode)
        if handler is None:
            answer.error(errno.ENOSYS)
            return
        if opcode == _Op.READ:
            self._waiting[unique] = answer
        try:
            handler(node, body, answer)
        except OSError as error:
            answer.error(error.errno or errno.EIO)

    def _given(self, unique: int) -> None:
        self._waiting.pop(unique, None)

    def _interrupt(self, unique: int) -> None:
        """Whoever waits for a read got a signal. Only reads: a write that waits will still be made."""
        answer = self._waiting.get(unique)
        if answer is not None:
            answer.error(errno.EINTR)

    def _file(self, node: int) -> File:
        file = self._nodes.get(node)
        if file is None:
            raise OSError(errno.EISDIR, "not a file")
        return file

    def _init(self, node: int, body: memoryview, answer: Answer) -> None:
        major, minor, readahead, flags = _INIT_IN.unpack_from(body)
        if major != 7 or minor < _MINOR:
            raise OSError(errno.EPROTO, "a kernel before Linux 5.4")
        pages = MAX_BYTES // _PAGE
        ahead, agreed = min(readahead, _READAHEAD), flags & _FLAGS
        sizes = (_BACKGROUND, _BACKGROUND * 3 // 4, MAX_BYTES, 1, pages, 0, 0, 0, 0)
        answer.data(_INIT_OUT.pack(7, _MINOR, ahead, agreed, *sizes, *[0] * 11))

    def _lookup(self, node: int, body: memoryview, answer: Answer) -> None:
        found = self._names.get(bytes(body).rstrip(b"\0")) if node == _ROOT else None
        if found is None:
            raise OSError(errno.ENOENT, "no such file")
        answer.data(_ENTRY_OUT.pack(found, 0, _FOREVER_S, _FOREVER_S, 0, 0), self._attributes(found))

    def _getattr(self, node: int, body: memoryview, answer: Answer) -> None:
        answer.data(_ATTR_OUT.pack(_FOREVER_S, 0, 0), self._attributes(node))

    def _attributes(self, node: int) -> bytes:
        if node == _ROOT:
            size, mode = 0, stat.S_IFDIR | 0o700
        else:
            size, mode = self._file(node).size, stat.S_IFREG | 0o600
        times, owner = (self._now,) * 3 + (0,) * 3, (self._uid, self._gid)
        return _ATTR.pack(node, size, -(-size // 512), *times, mode, 1, *owner, 0, _PAGE, 0)

    def _setattr(self, node: int, body: memoryview, answer: Answer) -> None:
        valid, _, _, size = _SETATTR_IN.unpack_from(body)

        def done(code: int) -> None:
            if code:
                answer.error(code)
            else:
                self._getattr(node, body, answer)

        if valid & _SET_SIZE:
            self._file(node).resize(size, done)
        else:  # times and modes are nobody's concern
            done(0)

    def _read(self, node: int, body: memoryview, answer: Answer) -> None:
        _, offset, length, *_ = _READ_IN.unpack_from(body)
        self._file(node).read(offset, length, answer)

    def _write(self, node: int, body: memoryview, answer: Answer) -> None:
        _, offset, length, *_ = _WRITE_IN.unpack_from(body)
        self._file(node).write(offset, body[_WRITE_IN.size :][:length], answer)

    def _fallocate(self, node: int, body: memoryview, answer: Answer) -> None:
        _, offset, length, mode, _ = _FALLOCATE_IN.unpack_from(body)
        self._file(node).allocate(offset, length, mode, answer)
