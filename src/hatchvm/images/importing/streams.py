"""Bytes from a stranger: decompressed whatever they are packed with, counted, and never more than was allowed."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO, Final, Protocol, cast

import zstandard

from hatchvm.base.errors import Exhausted, Invalid
from hatchvm.base.units import format_bytes

CHUNK: Final = 64 * 1024
_HEAD: Final = 6
#: An xz stream may ask for a dictionary of 4 GiB, a zstd frame for a window of 2 TiB.
_XZ_MEMORY: Final = 256 * 1024 * 1024
_ZSTD_WINDOW: Final = 128 * 1024 * 1024


class Reader(Protocol):
    """What a tar archive can be read from."""

    def read(self, size: int, /) -> bytes: ...


class Allowance:
    """How many bytes may still come, over all that share it: what the user allows, and what there is room for."""

    def __init__(self, max_bytes: int, room: int | None = None) -> None:
        self._max = max_bytes
        self._room = max_bytes if room is None else room
        self._taken = 0

    def take(self, count: int) -> None:
        """Raises Invalid when more was taken than allowed, Exhausted when it was more than there is room for."""
        self._taken += count
        if self._taken > self._max:
            raise Invalid(f"it unpacks to more than {format_bytes(self._max)}; --max-size allows more")
        if self._taken > self._room:
            raise Exhausted("there is not enough room in the cache directory to unpack it")

    def check(self, count: int) -> None:
        """Raises as if so much had been taken."""
        self.take(count)
        self._taken -= count


class Unpacked:
    """The decompressed content of a file from `start` on: gzip, zstd, xz, bzip2 or plain, told by its first bytes.

    Reading raises Invalid for damage and for what is more than allowed. `packed_sha256` and `sha256` are of what was
    read so far, before and after decompression; `drain` reads the rest.
    """

    def __init__(self, file: BinaryIO, allowance: Allowance, start: int = 0) -> None:
        file.seek(start)
        head = file.read(_HEAD)
        file.seek(start)
        self._file = file
        self._packed = _Digested(file)
        self._allowance = allowance
        with _damage():
            self._reader: Reader = _decompressor(self._packed, head) if is_packed(head) else file
        self._sha256 = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        with _damage():
            data = self._reader.read(size)
        self._allowance.take(len(data))
        self._sha256.update(data)
        return data

    def drain(self) -> None:
        while self.read(CHUNK):
            pass
        if self._reader is not self._file:
            while self._packed.read(CHUNK):
                pass

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def packed_sha256(self) -> str:
        return self.sha256 if self._reader is self._file else self._packed.sha256.hexdigest()


class _Digested:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size if size >= 0 else CHUNK)
        self.sha256.update(data)
        return data


class _Streams:
    """xz or bzip2 streams, one after another, with bounded memory."""

    def __init__(self, packed: _Digested, head: bytes) -> None:
        self._packed = packed
        self._xz = head.startswith(b"\xfd7zXZ")
        self._stream = self._begin()
        self._rest = b""

    def _begin(self) -> lzma.LZMADecompressor | bz2.BZ2Decompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY) if self._xz else bz2.BZ2Decompressor()

    def read(self, size: int, /) -> bytes:
        while True:
            if self._stream.eof:
                # A stream may be padded with zero bytes.
                self._rest = (self._stream.unused_data or self._packed.read(CHUNK)).lstrip(b"\0")
                if not self._rest:
                    return b""
                self._stream = self._begin()
            if self._stream.needs_input and not self._rest:
                self._rest = self._packed.read(CHUNK)
                if not self._rest:
                    raise EOFError("the file is cut short")
            data = self._stream.decompress(self._rest, size)
            self._rest = b""
            if data:
                return data


def _decompressor(packed: _Digested, head: bytes) -> Reader:
    if head.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=cast(IO[bytes], packed), mode="rb")
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        return cast(Reader, decompressor.stream_reader(cast(IO[bytes], packed), read_across_frames=True))
    return _Streams(packed, head)


def is_packed(head: bytes) -> bool:
    """True if a file that begins with `head` (6 bytes) is compressed in a way that `Unpacked` knows."""
    return head.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh"))


@contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError, ValueError) as error:
        raise Invalid("it is damaged: it cannot be decompressed", detail=str(error)) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise Invalid("it is damaged: it cannot be decompressed", detail=str(error)) from error  # bzip2's way
