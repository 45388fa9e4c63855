"""Reading a manifest that anybody may have written: nothing in it is used before it was checked.

Sizes, counts and lengths are bounded by the limits of the format, and every number in the tables points inside what
the manifest itself announces.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Collection
from dataclasses import fields
from datetime import datetime
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from hatchvm.base.errors import Corrupt, Unsupported
from hatchvm.domain.snapshot import Stamp
from hatchvm.snapshots import layout
from hatchvm.snapshots.codec import Codec, digest
from hatchvm.snapshots.codec import decode as unpack
from hatchvm.snapshots.layout import SnapshotKeys
from hatchvm.snapshots.manifest import FRAME, HEAD, MAGIC, Frames, Manifest, Pack, Stream, context
from hatchvm.snapshots.seal import OPEN, TAG_BYTES, Ring

_PACK_ID: Final = re.compile(r"[0-9a-f]{32}")
_KEY_ID: Final = re.compile(r"(?:[0-9a-f]{16})?")
_MAX_TEXT: Final = 4096
_MAX_INT: Final = 2**53
_STREAMS: Final = ([layout.MEMORY, layout.STATE], [layout.MEMORY, layout.STATE, layout.DISK])
_FACTS: Final = frozenset(
    "snapshot_id vm_id created_at stamp vm_config block_bytes added_bytes packs frames streams order".split()
)


def decode(data: bytes, keys: SnapshotKeys, ring: Ring) -> Manifest:
    """The manifest of the snapshot with these keys. Raises Corrupt; Unsupported for a newer format or a lost key."""
    try:
        return _manifest(_Reader(_plain(data, keys, ring)), keys, len(data))
    except (ValueError, RecursionError, struct.error) as error:
        raise Corrupt("the snapshot's manifest is damaged", detail=f"{keys.manifest}: {error}") from error


class _Reader:
    """Takes the body apart from front to back."""

    def __init__(self, plain: bytes) -> None:
        self._plain = plain
        self._at = 0

    def take(self, length: int) -> bytes:
        piece = self._plain[self._at : self._at + length]
        if len(piece) != length:
            raise ValueError("it ends too early")
        self._at += length
        return piece

    def numbers(self, count: int) -> npt.NDArray[np.uint32]:
        """Numbers that were stored as differences."""
        steps = np.frombuffer(self.take(4 * count), "<u4")
        return cast("npt.NDArray[np.uint32]", np.cumsum(steps, dtype=np.uint32))

    def end(self) -> None:
        if self._at != len(self._plain):
            raise ValueError("something follows it")


def _plain(data: bytes, keys: SnapshotKeys, ring: Ring) -> bytes:
    if not HEAD.size <= len(data) <= layout.MAX_MANIFEST_BYTES:
        raise ValueError("not a manifest")
    magic, version, key_id, salt, checksum, plain_bytes = HEAD.unpack_from(data)
    body = data[HEAD.size :]
    if magic != MAGIC or digest(HEAD.pack(magic, version, key_id, salt, bytes(32), plain_bytes) + body) != checksum:
        raise ValueError("the digest does not match")
    if version != layout.FORMAT:
        raise Unsupported(f"the snapshot has format {version}, this hatchvm reads format {layout.FORMAT}")
    sealer = ring.sealer(key_id, context(keys, salt))
    if sealer is not None:
        body = sealer.open(0, body)
    if plain_bytes > layout.MAX_MANIFEST_BYTES:
        raise ValueError("it is too long")
    return unpack(Codec.ZSTD, body, plain_bytes)


def _manifest(reader: _Reader, keys: SnapshotKeys, encoded_bytes: int) -> Manifest:
    facts = _object(json.loads(reader.take(struct.unpack("<I", reader.take(4))[0])), _FACTS)
    if facts["snapshot_id"] != keys.snapshot_id or facts["vm_id"] != keys.vm_id:
        raise ValueError("it belongs to another snapshot")
    block_bytes = check_block_bytes(facts["block_bytes"])
    packs = tuple(_pack(entry) for entry in _array(facts["packs"], layout.MAX_PACKS))
    if len({pack.id for pack in packs}) != len(packs):
        raise ValueError("a pack is listed twice")
    frames = _frames(reader, _int(facts["frames"], 0, layout.MAX_BLOCKS))
    check_frames(frames, packs, block_bytes)
    streams = _streams(reader, facts["streams"], frames, block_bytes)
    order = reader.numbers(_int(facts["order"], 0, len(streams[0].slots)))
    if len(order) and order.max() >= len(streams[0].slots):
        raise ValueError("the order names a block that is none")
    reader.end()
    return Manifest(
        snapshot_id=keys.snapshot_id,
        vm_id=keys.vm_id,
        created_at=_moment(facts["created_at"]),
        stamp=_stamp(facts["stamp"]),
        vm_config=_text(facts["vm_config"], layout.MAX_VM_CONFIG),
        block_bytes=block_bytes,
        packs=packs,
        frames=frames,
        streams=streams,
        order=order,
        added_bytes=_int(facts["added_bytes"], 0, _MAX_INT),
        encoded_bytes=encoded_bytes,
    )


def _pack(value: object) -> Pack:
    entry = _array(value, 3)
    if len(entry) != 3:
        raise ValueError("a pack is not three things")
    pack_id, key_id = _text(entry[0]), _text(entry[2])
    if not (_PACK_ID.fullmatch(pack_id) and _KEY_ID.fullmatch(key_id)):
        raise ValueError("a pack lies where it must not")
    return Pack(pack_id, _int(entry[1], 1, layout.MAX_PACK_BYTES), bytes.fromhex(key_id) if key_id else OPEN)


def _frames(reader: _Reader, count: int) -> Frames:
    columns = [reader.take(count * FRAME[name].itemsize) for name in FRAME.names or ()]
    frames = np.zeros(count, FRAME)  # only now: so much was there
    for name, column in zip(FRAME.names or (), columns, strict=True):
        frames[name] = np.frombuffer(column, FRAME[name].base).reshape(count, *FRAME[name].shape)
    return frames


def check_block_bytes(value: object) -> int:
    """Raises ValueError unless blocks may have this size."""
    block_bytes = _int(value, layout.MIN_BLOCK_BYTES, layout.MAX_BLOCK_BYTES)
    if block_bytes & (block_bytes - 1):
        raise ValueError("the block size is impossible")
    return block_bytes


def check_frames(frames: Frames, packs: tuple[Pack, ...], block_bytes: int) -> None:
    """Raises ValueError unless each lies within its pack and has a size that its codec can have."""
    if len(frames) and frames["pack"].max() >= len(packs):
        raise ValueError("a frame lies in no pack")
    sizes = np.array([pack.size for pack in packs], np.int64)[frames["pack"]]
    tags = np.array([0 if pack.key_id == OPEN else TAG_BYTES for pack in packs], np.int64)[frames["pack"]]
    length, plain = frames["length"].astype(np.int64) - tags, frames["blocks"].astype(np.int64) * block_bytes
    raw, packed = frames["codec"] == Codec.RAW, frames["codec"] == Codec.ZSTD
    sound = (
        (frames["offset"].astype(np.int64) + frames["length"] <= sizes)
        & (plain > 0)
        & (plain <= layout.FRAME_BYTES)
        & ((raw & (length == plain)) | (packed & (length > 0) & (length < plain)))
    )
    if not sound.all():
        raise ValueError("a frame is impossible")


def _streams(reader: _Reader, value: object, frames: Frames, block_bytes: int) -> tuple[Stream, ...]:
    entries = [_array(entry, 2) for entry in _array(value, len(_STREAMS[-1]))]
    if any(len(entry) != 2 for entry in entries) or [entry[0] for entry in entries] not in _STREAMS:
        raise ValueError("the streams are not those of a VM")
    sizes = [_int(entry[1], 0, layout.MAX_STREAM_BYTES) for entry in entries]
    counts = [-(-size // block_bytes) for size in sizes]
    if sum(counts) > layout.MAX_BLOCKS:
        raise ValueError("it has too many blocks")
    streams = []
    for entry, size, count in zip(entries, sizes, counts, strict=True):
        slots = reader.numbers(count)
        used = slots[slots > 0].astype(np.int64) - 1
        frame, place = np.divmod(used, layout.FRAME_BYTES // block_bytes)
        if len(used) and (frame.max() >= len(frames) or (place >= frames["blocks"][frame]).any()):
            raise ValueError("a block lies in no frame")
        streams.append(Stream(str(entry[0]), size, slots))
    return tuple(streams)


def _stamp(value: object) -> Stamp:
    stamp = _object(value, [field.name for field in fields(Stamp)])
    values: dict[str, Any] = {}
    for field in fields(Stamp):
        value = stamp[field.name]
        values[field.name] = _int(value, 0, _MAX_INT) if field.type == "int" else _text(value)
    return Stamp(**values)


def _moment(value: object) -> datetime:
    moment = datetime.fromisoformat(_text(value))
    if moment.tzinfo is None:
        raise ValueError("created_at has no time zone")
    return moment


def _object(value: object, names: Collection[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(names):
        raise ValueError(f"expected an object of {', '.join(sorted(names))}")
    return value


def _array(value: object, limit: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > limit:
        raise ValueError(f"expected an array of at most {limit}")
    return value


def _int(value: object, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"expected a number from {low} to {high}")
    return value


def _text(value: object, limit: int = _MAX_TEXT) -> str:
    # `encode` refuses the lone surrogates that JSON can smuggle in.
    if not isinstance(value, str) or len(value.encode()) > limit:
        raise ValueError(f"expected a text of at most {limit} bytes")
    return value
