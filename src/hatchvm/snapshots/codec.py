"""One frame, compressed and restored: zstd level 1 where it helps, else as it is."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import zstandard
from blake3 import blake3

_LEVEL: Final = 1


class Codec(IntEnum):
    """How a frame is stored."""

    RAW = 0
    ZSTD = 1  # one zstd frame that declares its content size


class Encoder:
    """Compresses frames. Not for two threads at once: it holds the compressor's tables."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False, write_content_size=True)

    def encode(self, plain: bytes | memoryview) -> tuple[Codec, bytes]:
        """The stored form, never longer than `plain`."""
        packed = self._compressor.compress(plain)
        return (Codec.ZSTD, packed) if len(packed) < len(plain) else (Codec.RAW, bytes(plain))


def decode(codec: Codec, stored: bytes | memoryview, plain_bytes: int) -> bytes:
    """The plain frame. Raises ValueError unless it has exactly `plain_bytes`; never allocates more than that."""
    if codec is Codec.RAW:
        plain = bytes(stored)
    else:
        try:
            # The declared size is what the decompressor allocates, whatever limit it is given.
            if zstandard.get_frame_parameters(stored).content_size != plain_bytes:
                raise ValueError("the frame declares another size")
            plain = zstandard.ZstdDecompressor().decompress(stored, max_output_size=plain_bytes, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
    if len(plain) != plain_bytes:
        raise ValueError("the frame has another size")
    return plain


def digest(data: bytes | memoryview) -> bytes:
    """BLAKE3, 32 bytes."""
    return blake3(data).digest()
