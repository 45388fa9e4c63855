"""Images of the user's own: checked, copied into the data directory under their digest, and never changed there.

    <images dir>/<digest>/{kernel,initrd,rootfs}

A copy is made in a folder beside and renamed into place whole. Images with the same files and boot arguments share one
folder: `remove` is for the last row that names a digest.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from hatchvm.base.copying import copy_sparse
from hatchvm.base.errors import Internal, Invalid
from hatchvm.base.files import sync_dir
from hatchvm.domain.image import Boot, DiskFormat
from hatchvm.images import content
from hatchvm.images.faults import translated
from hatchvm.images.formats import HEAD_BYTES, disk_format, is_kernel

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_BESIDE: Final = ".copy."


async def register(
    images_dir: Path, *, kernel: Path, initrd: Path | None, rootfs: Path | None, boot_args: str
) -> tuple[Boot, str, int]:
    """Copy the files of an image; (how to boot it, its digest, bytes of its files).

    Raises Invalid with a sentence that names the field (`kernel_path`, `initrd_path`, `rootfs_path`) and the path,
    Exhausted if the disk is full. Leaves nothing behind if it raises.
    """
    if initrd is None and rootfs is None:
        raise Invalid("an image needs initrd_path or rootfs_path, or both")
    return await asyncio.to_thread(_register, images_dir, kernel, initrd, rootfs, boot_args)


async def remove(images_dir: Path, digest: str) -> None:
    """Remove a registered image's files; missing ones are success."""
    if not _DIGEST.fullmatch(digest):
        raise Internal("not a digest of an image", detail=digest)
    with translated("removing the image"):
        await asyncio.to_thread(_remove, images_dir, digest)


async def sweep(images_dir: Path) -> None:
    """Remove what a killed process left. Only before this process registers or removes anything."""
    with translated("sweeping the images"):
        await asyncio.to_thread(_sweep, images_dir)


def _register(
    images_dir: Path, kernel: Path, initrd: Path | None, rootfs: Path | None, boot_args: str
) -> tuple[Boot, str, int]:
    with translated(f"copying the image to {images_dir}"):
        images_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=_BESIDE, dir=images_dir) as temporary:
            copies = Path(temporary, "image")
            copies.mkdir()
            boot = _copy(copies, kernel, initrd, rootfs, boot_args)
            digest = content.digest(boot)
            folder = images_dir / digest
            if not folder.exists():
                copies.rename(folder)
        sync_dir(images_dir)
        final = Boot(
            kernel=folder / boot.kernel.name,
            initrd=boot.initrd and folder / boot.initrd.name,
            rootfs=boot.rootfs and folder / boot.rootfs.name,
            rootfs_format=boot.rootfs_format,
            boot_args=boot_args,
        )
        return final, digest, content.size_bytes(final)


def _copy(target: Path, kernel: Path, initrd: Path | None, rootfs: Path | None, boot_args: str) -> Boot:
    with _opened("kernel_path", kernel) as file:
        if not is_kernel(os.pread(file, HEAD_BYTES, 0)):
            raise Invalid(f"kernel_path: {kernel} is not a Linux kernel (a bzImage or an ELF vmlinux)")
        copy_sparse(file, target / "kernel")
    if initrd:
        with _opened("initrd_path", initrd) as file:
            copy_sparse(file, target / "initrd")
    if rootfs:
        with _opened("rootfs_path", rootfs) as file:
            copy_sparse(file, target / "rootfs")
    return Boot(
        kernel=target / "kernel",
        initrd=target / "initrd" if initrd else None,
        rootfs=target / "rootfs" if rootfs else None,
        rootfs_format=_disk_format(target / "rootfs", rootfs) if rootfs else "raw",
        boot_args=boot_args,
    )


def _disk_format(copy: Path, given: Path) -> DiskFormat:
    """Told from the copy, which nobody can change any more."""
    with copy.open("rb") as file:
        head = file.read(HEAD_BYTES)
    try:
        return disk_format(head)
    except ValueError as error:
        raise Invalid(f"rootfs_path: {given} {error}") from error


@contextmanager
def _opened(field: str, path: Path) -> Iterator[int]:
    """The file descriptor of a regular, readable, non-empty file."""
    try:
        # Opening a FIFO must not wait for a writer.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        raise Invalid(f"{field}: {path} cannot be opened: {reason}") from error
    try:
        status = os.fstat(file)
        if stat.S_ISDIR(status.st_mode):
            raise Invalid(f"{field}: {path} is a directory")
        if not stat.S_ISREG(status.st_mode):
            raise Invalid(f"{field}: {path} is not a regular file")
        if status.st_size == 0:
            raise Invalid(f"{field}: {path} is empty")
        yield file
    finally:
        os.close(file)


def _remove(images_dir: Path, digest: str) -> None:
    """First out of sight in one step, then for good: no half of an image is ever found under its digest."""
    with suppress(FileNotFoundError), tempfile.TemporaryDirectory(prefix=_BESIDE, dir=images_dir) as trash:
        (images_dir / digest).rename(Path(trash, "image"))


def _sweep(images_dir: Path) -> None:
    for leftover in images_dir.glob(f"{_BESIDE}*"):
        shutil.rmtree(leftover)
