"""The manifest: everything there is to know about a snapshot, and its stored form.

Flat: it names every pack and frame it needs by itself, whichever snapshot stored them. The tables are arrays, a row a
frame and a number a block, so that a guest of gigabytes is read in milliseconds.
"""

from __future__ import annotations

import json
import secrets
import struct
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import zstandard

from hatchvm.base.errors import Unsupported
from hatchvm.domain.snapshot import Stamp
from hatchvm.snapshots.codec import digest
from hatchvm.snapshots.layout import FORMAT, FRAME_BYTES, MAX_MANIFEST_BYTES, SnapshotKeys, domain_of
from hatchvm.snapshots.seal import OPEN, Ring

#: One frame: where it lies, how it is stored, BLAKE3 of its stored bytes.
FRAME: Final = np.dtype(
    [("pack", "<u4"), ("offset", "<u4"), ("length", "<u4"), ("blocks", "<u2"), ("codec", "u1"), ("digest", "u1", (32,))]
)
Frames = npt.NDArray[np.void]
#: Block -> 0 if it is all zeros, else 1 + frame * blocks a frame + place in it.
Slots = npt.NDArray[np.uint32]

#: magic, format, key id, salt, digest of all the rest, plain bytes of the body
HEAD: Final = struct.Struct("<8sH8s16s32sQ")
MAGIC: Final = b"HATCHSNP"
_LEVEL: Final = 3


@dataclass(frozen=True, slots=True)
class Pack:
    """One object of frames. `key_id`: which key sealed it, or OPEN."""

    id: str
    size: int
    key_id: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """One file of a snapshot: `size` bytes, one slot a block. The last block may be short; stored, zeros follow."""

    name: str
    size: int
    slots: Slots


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Manifest:
    """A committed snapshot.

    `vm_config`: the VM's JSON, as given. `order`: blocks of the memory in the order in which the last wake needed them.
    `added_bytes`: what the packs made for this snapshot hold. `encoded_bytes`: the stored manifest's length.
    """

    snapshot_id: str
    vm_id: str
    created_at: datetime
    stamp: Stamp
    vm_config: str
    block_bytes: int
    packs: tuple[Pack, ...]
    frames: Frames
    streams: tuple[Stream, ...]
    order: npt.NDArray[np.uint32]
    added_bytes: int
    encoded_bytes: int = 0

    @property
    def keys(self) -> SnapshotKeys:
        return SnapshotKeys(self.vm_id, self.snapshot_id)

    @property
    def domain(self) -> str:
        return domain_of(self.stamp.image_digest)

    @property
    def frame_slots(self) -> int:
        """Blocks a full frame has."""
        return FRAME_BYTES // self.block_bytes

    @property
    def size_bytes(self) -> int:
        """All streams, holes included."""
        return sum(stream.size for stream in self.streams)

    @property
    def stored_bytes(self) -> int:
        """What the store grew by for this snapshot, the manifest too."""
        return self.encoded_bytes + self.added_bytes


def encode(manifest: Manifest, ring: Ring) -> tuple[Manifest, bytes]:
    """The manifest with `encoded_bytes` filled in, and its stored form.

    `stored_bytes` includes the manifest's own length, so it is not written into it: a reader knows it from the object.
    Raises Unsupported if it would be too long to be read back.
    """
    plain = _plain(manifest)
    body = zstandard.ZstdCompressor(level=_LEVEL).compress(plain)
    salt = secrets.token_bytes(16)
    sealer = ring.sealer(ring.current, context(manifest.keys, salt))
    if sealer is not None:
        body = sealer.seal(0, body)
    head = (MAGIC, FORMAT, ring.current, salt)
    unsigned = HEAD.pack(*head, bytes(32), len(plain)) + body
    if max(len(plain), len(unsigned)) > MAX_MANIFEST_BYTES:
        raise Unsupported("the snapshot has too many blocks for one manifest")
    data = HEAD.pack(*head, digest(unsigned), len(plain)) + body
    return replace(manifest, encoded_bytes=len(data)), data


def context(keys: SnapshotKeys, salt: bytes) -> bytes:
    """A manifest may be written more than once under its key (after a failed attempt), hence the salt."""
    return keys.manifest.encode() + salt


def _plain(manifest: Manifest) -> bytes:
    """Length of the JSON, the JSON, then the arrays it announces; slots and order as differences, which compress."""
    text = json.dumps(_facts(manifest), separators=(",", ":")).encode()
    columns = [np.ascontiguousarray(manifest.frames[name]).tobytes() for name in FRAME.names or ()]
    arrays = [_differences(stream.slots) for stream in manifest.streams] + [_differences(manifest.order)]
    return b"".join([struct.pack("<I", len(text)), text, *columns, *arrays])


def _facts(manifest: Manifest) -> dict[str, Any]:
    return {
        "snapshot_id": manifest.snapshot_id,
        "vm_id": manifest.vm_id,
        "created_at": manifest.created_at.isoformat(),
        "stamp": asdict(manifest.stamp),
        "vm_config": manifest.vm_config,
        "block_bytes": manifest.block_bytes,
        "added_bytes": manifest.added_bytes,
        "packs": [[pack.id, pack.size, "" if pack.key_id == OPEN else pack.key_id.hex()] for pack in manifest.packs],
        "frames": len(manifest.frames),
        "streams": [[stream.name, stream.size] for stream in manifest.streams],
        "order": len(manifest.order),
    }


def _differences(numbers: npt.NDArray[np.uint32]) -> bytes:
    return np.diff(numbers, prepend=np.uint32(0)).astype("<u4").tobytes()
