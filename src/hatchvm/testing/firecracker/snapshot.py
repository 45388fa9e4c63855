"""The stand-in's state file: magic, version, JSON, checksum. Read strictly, like Firecracker's."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any, Final

_MAGIC: Final = b"standin\0"
_HEAD: Final = struct.Struct("=8sHHH")
_CRC: Final = struct.Struct("=I")
_MAX: Final = 10_000_000
#: Version of Firecracker -> of its snapshots.
FORMATS: Final = {"1.16.1": (10, 0, 0), "1.17.0-dev": (11, 0, 0)}


def save(path: str, version: tuple[int, int, int], content: dict[str, Any]) -> None:
    """Truncates, writes and syncs; another file may have stood there. Raises OSError."""
    body = _HEAD.pack(_MAGIC, *version) + json.dumps(content).encode()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(fd, body + _CRC.pack(zlib.crc32(body)))
        os.fsync(fd)
    finally:
        os.close(fd)


def version(path: str) -> tuple[int, int, int]:
    """Raises OSError, ValueError."""
    return _read(path)[0]


def load(path: str, own: tuple[int, int, int]) -> dict[str, Any]:
    """Raises OSError, ValueError if it is damaged or of a version that `own` cannot read."""
    found, content = _read(path)
    if found[0] != own[0] or found[1] > own[1]:
        raise ValueError(f"the snapshot's version {found} is not supported")
    return content


def _read(path: str) -> tuple[tuple[int, int, int], dict[str, Any]]:
    with Path(path).open("rb") as file:
        data = file.read(_MAX + 1)
    body, end = data[: -_CRC.size], data[-_CRC.size :]
    if len(data) > _MAX or len(body) < _HEAD.size or _CRC.pack(zlib.crc32(body)) != end:
        raise ValueError("the checksum does not fit")
    magic, *found = _HEAD.unpack_from(body)
    if magic != _MAGIC:
        raise ValueError("the magic number is another")
    content: dict[str, Any] = json.loads(body[_HEAD.size :])
    return (found[0], found[1], found[2]), content
