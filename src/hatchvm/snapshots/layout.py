"""Where the objects of a snapshot lie, and the limits of format 1. See docs/internals/snapshot-format.md.

snapshots/<vm id>/<snapshot id>/manifest.json       written last: it makes the snapshot exist
snapshots/<vm id>/<snapshot id>/memory.0000.pack    blocks of the guest's memory, end to end
snapshots/<vm id>/<snapshot id>/disk.0000.pack      ... of its disk
snapshots/<vm id>/<snapshot id>/state.0000.pack     ... of its device state
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hatchvm.base import ids
from hatchvm.base.errors import Invalid
from hatchvm.base.units import MIB

FORMAT: Final = 1
ROOT: Final = "snapshots/"
MEMORY: Final = "memory"
STATE: Final = "state"
DISK: Final = "disk"

BLOCK_BYTES: Final = 256 * 1024
MIN_BLOCK_BYTES: Final = 4 * 1024
MAX_BLOCK_BYTES: Final = 4 * MIB
#: Blocks a stream may have: it bounds the manifest, and the memory that writing and reading one take.
MAX_BLOCKS: Final = 256 * 1024
#: Plain bytes looked at for one pack. Three packs in flight then stay under 100 MiB, malloc's waste included.
PACK_BYTES: Final = 8 * MIB
MAX_PACK_BYTES: Final = 32 * MIB
MAX_MANIFEST_BYTES: Final = 64 * MIB
MAX_VM_CONFIG: Final = 4 * MIB
#: stream -> the most bytes it may have.
MAX_STREAM_BYTES: Final = {MEMORY: MAX_BLOCKS * MAX_BLOCK_BYTES, STATE: 1024 * MIB, DISK: MAX_BLOCKS * MAX_BLOCK_BYTES}

_MANIFEST: Final = "manifest.json"


@dataclass(frozen=True, slots=True)
class SnapshotKeys:
    """The keys of one snapshot. Raises Invalid unless both ids have the shape of ids."""

    vm_id: str
    snapshot_id: str

    def __post_init__(self) -> None:
        if not ids.is_id(self.snapshot_id, ids.SNAPSHOT):
            raise Invalid("snapshot id must look like snap-0123456789ab")
        vm_prefix(self.vm_id)

    @property
    def prefix(self) -> str:
        """Begins every key of this snapshot and of no other."""
        return f"{vm_prefix(self.vm_id)}{self.snapshot_id}/"

    @property
    def manifest(self) -> str:
        return self.prefix + _MANIFEST

    @property
    def memory(self) -> str:
        """What the snapshot's row names as `memory_key`; its packs' keys begin so. `state` and `disk` likewise."""
        return self.prefix + MEMORY

    @property
    def state(self) -> str:
        return self.prefix + STATE

    @property
    def disk(self) -> str:
        return self.prefix + DISK

    def pack(self, stream: str, number: int) -> str:
        return f"{self.prefix}{stream}.{number:04d}.pack"


def vm_prefix(vm_id: str) -> str:
    """Begins every key stored for a VM and for no other. Raises Invalid."""
    if not ids.is_id(vm_id, ids.VM):
        raise Invalid("vm id must look like vm-0123456789ab")
    return f"{ROOT}{vm_id}/"


def keys_of(key: str) -> SnapshotKeys | None:
    """The snapshot an object belongs to, or None if it is none of ours."""
    parts = key.split("/")
    if len(parts) != 4 or not (ids.is_id(parts[1], ids.VM) and ids.is_id(parts[2], ids.SNAPSHOT)):
        return None
    return SnapshotKeys(parts[1], parts[2])


def block_bytes_for(size: int) -> int:
    """Block size for a stream of `size` bytes: 256 KiB, doubled until the stream has at most MAX_BLOCKS blocks."""
    block = BLOCK_BYTES
    while block * MAX_BLOCKS < size:
        block *= 2
    return block
