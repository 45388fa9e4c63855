"""A VM's disk under Firecracker, which knows raw disks only: a copy of the image's that shares its blocks.

Where the file system cannot share blocks (XFS and Btrfs can) the copy is real, but holes stay holes.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

from hatchvm.base.copying import copy_sparse
from hatchvm.base.errors import Exhausted, Internal, Unavailable, Unsupported
from hatchvm.base.files import NO_ROOM, sync_file
from hatchvm.domain.image import DiskFormat

_NEW_DISK_BYTES: Final = 8 * 1024**3
_FULL: Final = "the disk is full: no room for the VM's disk"


def create(base: Path | None, base_format: DiskFormat, disk: Path) -> None:
    """Make the new raw disk `disk` with the content of `base`, or an empty one of 8 GiB. It is whole and durable.

    Blocks for as long as the copy takes. On failure nothing is left. Raises Exhausted on a full disk, Unavailable if a
    file cannot be read or written, Unsupported without the program that reads qcow2.
    """
    try:
        if base is None:
            _empty(disk)
        elif base_format == "qcow2":
            _convert(base, disk)
        else:
            with base.open("rb") as source:
                copy_sparse(source.fileno(), disk)
    except OSError as error:
        disk.unlink(missing_ok=True)
        if error.errno in NO_ROOM:
            raise Exhausted(_FULL, detail=repr(error)) from error
        raise Unavailable(f"the VM's disk could not be made: {error.strerror}", detail=repr(error)) from error
    except BaseException:
        disk.unlink(missing_ok=True)
        raise


def _empty(disk: Path) -> None:
    with disk.open("xb") as file:
        file.truncate(_NEW_DISK_BYTES)
        os.fsync(file.fileno())


def _convert(base: Path, disk: Path) -> None:
    """An image's qcow2 has no backing file (see `images.registry`)."""
    argv = ["qemu-img", "convert", "-q", "-f", "qcow2", "-O", "raw", str(base), str(disk)]
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise Unsupported(
            "the image's disk is qcow2, and qemu-img, which converts it for Firecracker, is not installed: "
            "apt-get install qemu-utils, or register a raw disk"
        ) from error
    if done.returncode:
        text = done.stderr.strip()
        if "No space left" in text:
            raise Exhausted(_FULL, detail=text)
        raise Internal("the image's disk could not be converted", detail=text)
    sync_file(disk)
