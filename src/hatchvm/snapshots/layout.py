"""Where the objects of snapshots lie, and the limits of format 2. See docs/internals/snapshot-format.md.

snapshots/<vm id>/<snapshot id>/manifest     written last: it makes the snapshot exist
packs/<domain>/<pack id>                     blocks, shared by every snapshot of every VM of one image
trash/<vm id>/<snapshot id>                  the manifest of a deleted snapshot: for a while it still protects its packs
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from hatchvm.base import ids
from hatchvm.base.errors import Invalid, Unsupported
from hatchvm.base.units import MIB

FORMAT: Final = 2
SNAPSHOTS: Final = "snapshots/"
PACKS: Final = "packs/"
TRASH: Final = "trash/"
MEMORY: Final = "memory"
STATE: Final = "state"
DISK: Final = "disk"

#: Blocks are the unit of deduplication, frames of up to this many plain bytes the unit of compression and reading.
FRAME_BYTES: Final = 256 * 1024
MIN_BLOCK_BYTES: Final = 4096
MAX_BLOCK_BYTES: Final = FRAME_BYTES
#: Blocks a snapshot may have: it bounds the memory that writing and reading one take. 32 GiB in blocks of 4 KiB.
MAX_BLOCKS: Final = 8 * 1024 * 1024
#: 16 MiB of plain bytes. Three packs in flight then stay under 100 MiB.
PACK_FRAMES: Final = 64
MAX_PACKS: Final = 256 * 1024
MAX_PACK_BYTES: Final = 32 * MIB
MAX_MANIFEST_BYTES: Final = 256 * MIB
MAX_VM_CONFIG: Final = 4 * MIB
#: The most bytes a stream may have.
MAX_STREAM_BYTES: Final = MAX_BLOCKS * MAX_BLOCK_BYTES

_MANIFEST: Final = "manifest"


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
    def manifest(self) -> str:
        return f"{vm_prefix(self.vm_id)}{self.snapshot_id}/{_MANIFEST}"

    @property
    def trash(self) -> str:
        return f"{TRASH}{self.vm_id}/{self.snapshot_id}"

    @property
    def memory(self) -> str:
        """What the snapshot's row names as `memory_key`: a stream of the manifest. `state` and `disk` likewise."""
        return f"{self.manifest}#{MEMORY}"

    @property
    def state(self) -> str:
        return f"{self.manifest}#{STATE}"

    @property
    def disk(self) -> str:
        return f"{self.manifest}#{DISK}"


def vm_prefix(vm_id: str) -> str:
    """Begins the key of every manifest of a VM and of no other. Raises Invalid."""
    if not ids.is_id(vm_id, ids.VM):
        raise Invalid("vm id must look like vm-0123456789ab")
    return f"{SNAPSHOTS}{vm_id}/"


def keys_of(key: str) -> SnapshotKeys | None:
    """The snapshot whose manifest (or trashed manifest) has this key, or None if it is none of ours."""
    parts = key.split("/")
    if len(parts) < 3 or not (ids.is_id(parts[1], ids.VM) and ids.is_id(parts[2], ids.SNAPSHOT)):
        return None
    keys = SnapshotKeys(parts[1], parts[2])
    return keys if key in (keys.manifest, keys.trash) else None


def domain_of(image_digest: str) -> str:
    """Names the VMs that share blocks: those of one image."""
    return blake3(image_digest.encode()).hexdigest(16)


def pack_key(domain: str, pack_id: str) -> str:
    return f"{PACKS}{domain}/{pack_id}"


def block_bytes_for(sizes: list[int]) -> int:
    """Block size of a snapshot whose streams have these sizes: 4 KiB, doubled until there are at most MAX_BLOCKS."""
    block = MIN_BLOCK_BYTES
    while sum(-(-size // block) for size in sizes) > MAX_BLOCKS:
        block *= 2
        if block > MAX_BLOCK_BYTES:
            raise Unsupported("the VM's memory and disk are too large to be stored")
    return block
