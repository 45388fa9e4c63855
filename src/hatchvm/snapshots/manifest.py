"""The manifest: everything there is to know about a snapshot, and its stored form.

It is JSON in an envelope that stays the same in every format, so that any reader can tell damage from the future:

    {"format":1,"blake3":"<64 hex digits>","body":{…}}

The digest covers every other byte of the object, the format included.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime

from hatchvm.base.errors import Unsupported
from hatchvm.domain.snapshot import Stamp
from hatchvm.snapshots.codec import Codec, digest
from hatchvm.snapshots.layout import FORMAT, MAX_MANIFEST_BYTES, SnapshotKeys


@dataclass(frozen=True, slots=True)
class Block:
    """One stored block of a stream. `digest` is of the plain bytes; `offset` and `length` lie in its pack."""

    index: int
    offset: int
    length: int
    codec: Codec
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """One object holding blocks in ascending order. `digest` is of the whole object."""

    key: str
    size: int
    digest: bytes
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One file of a snapshot. A block that no pack holds is all zeros."""

    name: str
    size: int
    block_size: int
    packs: tuple[Pack, ...]

    def plain_bytes(self, index: int) -> int:
        """The length of that block: the last one may be short."""
        return min(self.block_size, self.size - index * self.block_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A committed snapshot. `vm_config`: the VM's JSON, as given; `encoded_bytes`: the stored manifest's length."""

    snapshot_id: str
    vm_id: str
    created_at: datetime
    stamp: Stamp
    vm_config: str
    streams: tuple[Stream, ...]
    encoded_bytes: int = 0

    @property
    def keys(self) -> SnapshotKeys:
        return SnapshotKeys(self.vm_id, self.snapshot_id)

    @property
    def size_bytes(self) -> int:
        """All streams, holes included."""
        return sum(stream.size for stream in self.streams)

    @property
    def stored_bytes(self) -> int:
        """All objects of the snapshot, the manifest too."""
        return self.encoded_bytes + sum(pack.size for stream in self.streams for pack in stream.packs)


def encode(manifest: Manifest) -> tuple[Manifest, bytes]:
    """The manifest with `encoded_bytes` filled in, and its stored form.

    `stored_bytes` includes the manifest's own length, so it is not written into it: a reader knows it from the object.
    Raises Unsupported if it would be too long to be read back.
    """
    body = json.dumps(_body(manifest), separators=(",", ":")).encode()
    head, tail = f'{{"format":{FORMAT},"blake3":"'.encode(), b'","body":' + body + b"}"
    data = head + digest(head + tail).hex().encode() + tail
    if len(data) > MAX_MANIFEST_BYTES:
        raise Unsupported("the snapshot has too many blocks for one manifest")
    return replace(manifest, encoded_bytes=len(data)), data


def _body(manifest: Manifest) -> dict[str, object]:
    return {
        "snapshot_id": manifest.snapshot_id,
        "vm_id": manifest.vm_id,
        "created_at": manifest.created_at.isoformat(),
        "stamp": asdict(manifest.stamp),
        "vm_config": manifest.vm_config,
        "size_bytes": manifest.size_bytes,
        "streams": {stream.name: _stream(stream) for stream in manifest.streams},
    }


def _stream(stream: Stream) -> dict[str, object]:
    return {"size": stream.size, "block_size": stream.block_size, "packs": [_pack(pack) for pack in stream.packs]}


def _pack(pack: Pack) -> dict[str, object]:
    rows = [[block.index, block.offset, block.length, block.codec, block.digest.hex()] for block in pack.blocks]
    return {"key": pack.key, "size": pack.size, "blake3": pack.digest.hex(), "blocks": rows}
