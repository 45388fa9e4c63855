"""Where a body ends. Bodies pass through as they come: these readers only count, and check what they let through."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Protocol

from hatchvm.edge.http.proto.fields import CHUNKED, TRAILER_FIELDS, Malformed, refuse_controls

_MAX_SIZE_LINE_BYTES: Final = 4096
_MAX_TRAILER_BYTES: Final = 16 * 1024
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*)?")


class Body(Protocol):
    """One body on its way through."""

    done: bool  # its last byte has passed
    ends_with_connection: bool

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """(what may pass now, what follows the body). Raises Malformed."""


class Sized:
    """A body of a known number of bytes, at least one."""

    ends_with_connection = False

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        if len(data) < self._left:
            self._left -= len(data)
            return data, b""
        left = self._left
        self._left = 0
        self.done = True
        return data[:left], data[left:]


class UntilClose:
    """A body that ends with its connection."""

    done = False
    ends_with_connection = True

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        return data, b""


class Chunked:
    """A chunked body with its trailers. Nothing passes before it was checked: an unfinished line waits.

    `unwrap`: let only the payload pass, for a client that does not know chunks.
    """

    ends_with_connection = False

    def __init__(self, *, unwrap: bool = False) -> None:
        self.done = False
        self._unwrap = unwrap
        self._payload: list[bytes] = []
        self._held = b""
        self._left = 0
        self._trailer_bytes = 0
        self._read: Callable[[bytes, int], int] = self._size_line

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        data = self._held + data
        at = 0
        while not self.done:
            after = self._read(data, at)
            if after == at:
                break
            at = after
        rest = data[at:]
        self._held = b"" if self.done else rest
        passed = data[:at]
        if self._unwrap:
            passed = b"".join(self._payload)
            self._payload.clear()
        return passed, rest if self.done else b""

    # Each reader takes what it can from `at` on and returns where it stopped: `at` itself if it needs more.

    def _size_line(self, data: bytes, at: int) -> int:
        line = _line(data, at, _MAX_SIZE_LINE_BYTES)
        if line is None:
            return at
        match = _SIZE_LINE.fullmatch(line)
        if not match:
            raise Malformed("malformed chunk size")
        self._left = int(match[1], 16)
        self._read = self._chunk if self._left else self._trailer
        return at + len(line) + 2

    def _chunk(self, data: bytes, at: int) -> int:
        taken = min(self._left, len(data) - at)
        if self._unwrap:
            self._payload.append(data[at : at + taken])
        self._left -= taken
        if not self._left:
            self._read = self._chunk_end
        return at + taken

    def _chunk_end(self, data: bytes, at: int) -> int:
        end = data[at : at + 2]
        if not b"\r\n".startswith(end):
            raise Malformed("a chunk is longer than its size")
        if len(end) < 2:
            return at
        self._read = self._size_line
        return at + 2

    def _trailer(self, data: bytes, at: int) -> int:
        line = _line(data, at, _MAX_TRAILER_BYTES - self._trailer_bytes)
        if line is None:
            return at
        if line:
            refuse_controls(line)
            TRAILER_FIELDS.check(line)
        self._trailer_bytes += len(line) + 2
        self.done = not line
        return at + len(line) + 2


def body_of(length: int | None, *, unwrap: bool = False) -> Body | None:
    """The reader for a declared length (see `Response.length`); None if there is no body."""
    if length == 0:
        return None
    if length is None:
        return UntilClose()
    return Chunked(unwrap=unwrap) if length == CHUNKED else Sized(length)


def _line(data: bytes, at: int, limit: int) -> bytes | None:
    """The line that starts at `at`, without its CRLF; None if it is not whole yet."""
    end = data.find(b"\n", at, at + limit)
    if end < 0:
        if len(data) - at >= limit:
            raise Malformed("a line of a chunked body is too long")
        return None
    line = data[at : end - 1] if end > at else b""
    if end == at or data[end - 1] != 0x0D or b"\r" in line:
        raise Malformed("a bare CR or LF in a chunked body")
    return line
