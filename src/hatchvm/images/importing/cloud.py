"""Cloud images: disks that bring a kernel of their own. They are read with debugfs, never mounted."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hatchvm.base.copying import copy_sparse
from hatchvm.base.errors import Invalid
from hatchvm.base.units import MIB, format_bytes
from hatchvm.domain.image import Boot
from hatchvm.images.formats import HEAD_BYTES, disk_format
from hatchvm.images.importing import debugfs
from hatchvm.images.importing.initrd import has_module
from hatchvm.images.importing.partitions import Partition, ext4_partitions
from hatchvm.images.importing.sources import open_file
from hatchvm.images.recipe import BOOT_ARGS
from hatchvm.images.tools import run

_MAX_LISTING_BYTES: Final = 16 * MIB
_MAX_KERNEL_BYTES: Final = 256 * MIB
_MAX_INITRD_BYTES: Final = 1024 * MIB
_MAX_CONFIG_BYTES: Final = MIB
_ENTRY: Final = re.compile(r"/\d+/(\d{6})/\d+/\d+/([\w.+~-]+)/\d*/", re.ASCII)
_KERNEL: Final = re.compile(r"vmlinuz-(?!.*rescue)(.+)")
#: How distributions call the initrd of a kernel's version.
_INITRDS: Final = ("initrd.img-{}", "initramfs-{}.img", "initrd-{}", "initramfs-{}")


@dataclass(frozen=True, slots=True)
class Kernel:
    """`folder`: of a partition, with `kernel` and perhaps `initrd` in it."""

    partition: Partition
    folder: str  # `/boot`, or nothing for a partition's root
    version: str
    initrd: str | None


def take_disk(path: Path, target: Path, max_bytes: int) -> None:
    """Write the raw or qcow2 disk `path` to the new file `target`, raw and sparse.

    Raises Invalid for a qcow2 that refers to other files, or a disk larger than `max_bytes`.
    """
    with open_file(path) as file:
        head, size = file.read(HEAD_BYTES), os.fstat(file.fileno()).st_size
        try:
            kind = disk_format(head)
        except ValueError as error:
            raise Invalid(f"it {error}") from error
        if kind == "qcow2":
            (size,) = struct.unpack_from(">Q", head, 24)
        if size > max_bytes:
            raise Invalid(f"its disk has {format_bytes(size)}; --max-size allows more")
        if kind == "raw":
            copy_sparse(file.fileno(), target)
    if kind == "qcow2":
        # An absolute path is never taken for a protocol, and the format is not guessed from what the disk holds.
        run("qemu-img", "convert", "-q", "-f", "qcow2", "-O", "raw", str(path.absolute()), str(target))


def extract(disk: Path, progress: Callable[[str], None]) -> Boot:
    """How to boot the raw `disk`: kernel and initrd are written beside it. Raises Invalid if it has none."""
    with disk.open("rb") as file:
        partitions = ext4_partitions(file, disk.stat().st_size)
    reader = _Reader(disk)
    roots = [part for part in partitions if {"etc", "usr"} <= reader.names(part, "/").keys()]
    if not roots:
        raise Invalid("it has no ext4 root file system; others, such as xfs and btrfs, cannot be imported")
    root = roots[0]
    kernel = _newest(reader, root, partitions)
    progress(f"kernel {kernel.version} of {kernel.partition.device}, root file system on {root.device}")
    boot = Boot(
        kernel=disk.with_name("kernel"),
        initrd=disk.with_name("initrd") if kernel.initrd else None,
        rootfs=disk,
        rootfs_format="raw",
        boot_args=f"{BOOT_ARGS} root={root.device} rw",
    )
    reader.copy(kernel.partition, f"{kernel.folder}/vmlinuz-{kernel.version}", boot.kernel, _MAX_KERNEL_BYTES)
    if boot.initrd:
        reader.copy(kernel.partition, f"{kernel.folder}/{kernel.initrd}", boot.initrd, _MAX_INITRD_BYTES)
    _warn_of_virtio(reader, kernel, boot, progress)
    return boot


def _newest(reader: _Reader, root: Partition, partitions: list[Partition]) -> Kernel:
    """The kernel of the highest version; one with an initrd if there is any. /boot may be a partition of its own."""
    found = list(_kernels(reader, root, "/boot"))
    for part in partitions:
        if part != root:
            found += _kernels(reader, part, "")
    if not found:
        raise Invalid("it has no kernel in /boot (vmlinuz-*)")
    return max(found, key=lambda kernel: (kernel.initrd is not None, _comparable(kernel.version)))


def _kernels(reader: _Reader, part: Partition, folder: str) -> Iterator[Kernel]:
    names = reader.names(part, folder or "/")
    for name in names:
        if match := _KERNEL.fullmatch(name):
            initrds = (pattern.format(match[1]) for pattern in _INITRDS)
            yield Kernel(part, folder, match[1], next((initrd for initrd in initrds if initrd in names), None))


def _comparable(version: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|\D+", version)]


def _warn_of_virtio(reader: _Reader, kernel: Kernel, boot: Boot, progress: Callable[[str], None]) -> None:
    """Hatch's machines have their disk on virtio_mmio, which not every distribution expects of a PC."""
    config = boot.kernel.with_name("config")
    config_name = f"config-{kernel.version}"
    if config_name in reader.names(kernel.partition, kernel.folder or "/"):
        reader.copy(kernel.partition, f"{kernel.folder}/{config_name}", config, _MAX_CONFIG_BYTES)
        if b"\nCONFIG_VIRTIO_MMIO=y\n" in config.read_bytes():
            return
    found: bool | None = False
    if boot.initrd:
        with boot.initrd.open("rb") as file:
            found = has_module(file, "virtio_mmio")
    if found is None:
        progress("note: whether its initrd has the module virtio_mmio could not be told; without it, it will not boot")
    elif not found:
        progress(
            "WARNING: its initrd lacks the module virtio_mmio, so it will not find its disk; in the original, add the "
            "line virtio_mmio to /etc/initramfs-tools/modules, run update-initramfs -u, and import it again"
        )


class _Reader:
    """Reads the ext4 of partitions; listings are kept."""

    def __init__(self, disk: Path) -> None:
        self._disk = disk
        self._listings: dict[tuple[int, str], dict[str, int]] = {}

    def names(self, part: Partition, folder: str) -> dict[str, int]:
        """Name -> mode of the entries with plain names; nothing if there is no such folder."""
        known = self._listings.get((part.number, folder))
        if known is None:
            answer = self._disk.with_name("listing")
            debugfs.read(self._disk, part.start, f'ls -p "{folder}"', answer, _MAX_LISTING_BYTES)
            lines = answer.read_text("utf-8", errors="replace").splitlines()
            known = {match[2]: int(match[1], 8) for match in map(_ENTRY.fullmatch, lines) if match}
            self._listings[part.number, folder] = known
        return known

    def copy(self, part: Partition, path: str, target: Path, limit: int) -> None:
        """Write what the file `path` holds to `target`. Raises Invalid for nothing, and for more than `limit` bytes."""
        debugfs.read(self._disk, part.start, f'cat "{path}"', target, limit)
        if not target.stat().st_size:
            raise Invalid(f"its file {path} on {part.device} is empty, or cannot be read")
