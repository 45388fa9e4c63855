"""Unpacking a Linux kernel on the host, so that no guest need do it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from hatchvm.images.tools import run

_LZ4_LEGACY: Final = b"\x02\x21\x4c\x18"


def unpack(bzimage: Path, target: Path, lz4: tuple[str, ...]) -> None:
    """Write the ELF kernel inside `bzimage` to `target`, using the command `lz4`.

    A guest under emulation needs 0.5 s to unpack itself, and Firecracker boots only ELF. A kernel compressed otherwise
    is kept as it is. Layout: kernel's Documentation/x86/boot.rst, fields setup_sects, payload_offset, payload_length.
    """
    image = bzimage.read_bytes()
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if not payload.startswith(_LZ4_LEGACY):
        bzimage.replace(target)
        return
    packed = target.with_name("vmlinux.lz4")
    packed.write_bytes(payload[:-4])  # the last four bytes are the size, not LZ4
    run(*lz4, "-d", "-q", "-f", str(packed), str(target))
    packed.unlink()
