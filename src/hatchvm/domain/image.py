"""Images and templates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

#: The built-in images: `TINY` is made when it is first needed, `DEBIAN` when somebody asks for it.
Builtin = Literal["tiny", "debian"]
TINY: Final = "tiny"
DEBIAN: Final = "debian"
#: The image made of `HATCH_DEFAULT_KERNEL_PATH` and `HATCH_DEFAULT_ROOTFS_PATH`, if they are set.
DEFAULT: Final = "default"

#: What a kernel must be told when no initrd finds the root disk for it.
ROOT_ARGS: Final = "root=/dev/vda rw"

DiskFormat = Literal["raw", "qcow2"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """The immutable files of an image, as a VMM needs them."""

    kernel: Path
    initrd: Path | None
    rootfs: Path | None
    rootfs_format: DiskFormat
    boot_args: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An immutable bootable guest. Its files are content-addressed and never change."""

    id: str
    name: str | None
    boot: Boot
    digest: str  # blake3 over its files
    size_bytes: int
    created_at: datetime
    builtin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A named set of defaults for new VMs: field names of VMSpec -> values."""

    id: str
    name: str
    defaults: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    created_at: datetime
