"""Reading a manifest that anybody may have written: nothing in it is used before it was checked.

Sizes, counts and lengths are bounded by the limits of the format; keys must be the ones this snapshot would have
written, so a manifest cannot point outside its own folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import fields
from datetime import datetime
from typing import Final, cast

from hatchvm.base.errors import Corrupt, Unsupported
from hatchvm.domain.snapshot import Stamp
from hatchvm.snapshots import layout
from hatchvm.snapshots.codec import Codec, digest
from hatchvm.snapshots.layout import SnapshotKeys
from hatchvm.snapshots.manifest import Block, Manifest, Pack, Stream

_ENVELOPE: Final = re.compile(rb'\{"format":([1-9][0-9]{0,5}),"blake3":"([0-9a-f]{64})","body":.*\}', re.DOTALL)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_MAX_TEXT: Final = 4096
_MAX_INT: Final = 2**53
_STREAMS: Final = ((layout.MEMORY, True), (layout.STATE, True), (layout.DISK, False))


def decode(data: bytes, keys: SnapshotKeys) -> Manifest:
    """The manifest of the snapshot with these keys. Raises Corrupt, or Unsupported for a newer format."""
    try:
        return _manifest(_body(data), keys, len(data))
    except (ValueError, RecursionError) as error:
        raise Corrupt("the snapshot's manifest is damaged", detail=f"{keys.manifest}: {error}") from error


def _body(data: bytes) -> object:
    envelope = _ENVELOPE.fullmatch(data) if len(data) <= layout.MAX_MANIFEST_BYTES else None
    if envelope is None:
        raise ValueError("not a manifest")
    start, end = envelope.span(2)
    if digest(data[:start] + data[end:]).hex().encode() != envelope[2]:
        raise ValueError("the digest does not match")
    if (version := int(envelope[1])) != layout.FORMAT:
        raise Unsupported(f"the snapshot has format {version}, this hatchvm reads format {layout.FORMAT}")
    return json.loads(data)["body"]


def _manifest(value: object, keys: SnapshotKeys, encoded_bytes: int) -> Manifest:
    names = {"snapshot_id", "vm_id", "created_at", "stamp", "vm_config", "size_bytes", "streams"}
    body = _object(value, names)
    if body["snapshot_id"] != keys.snapshot_id or body["vm_id"] != keys.vm_id:
        raise ValueError("it belongs to another snapshot")
    created_at = datetime.fromisoformat(_text(body["created_at"]))
    if created_at.tzinfo is None:
        raise ValueError("created_at has no time zone")
    manifest = Manifest(
        snapshot_id=keys.snapshot_id,
        vm_id=keys.vm_id,
        created_at=created_at,
        stamp=_stamp(body["stamp"]),
        vm_config=_text(body["vm_config"], layout.MAX_VM_CONFIG),
        streams=tuple(_streams(body["streams"], keys)),
        encoded_bytes=encoded_bytes,
    )
    if manifest.size_bytes != body["size_bytes"]:
        raise ValueError("size_bytes is not the sum of its streams")
    return manifest


def _stamp(value: object) -> Stamp:
    stamp = _object(value, [field.name for field in fields(Stamp)])
    return Stamp(
        vmm=_text(stamp["vmm"]),
        vmm_version=_text(stamp["vmm_version"]),
        machine=_text(stamp["machine"]),
        mem_mib=_int(stamp["mem_mib"], 0, _MAX_INT),
        vcpu_count=_int(stamp["vcpu_count"], 0, _MAX_INT),
        devices=_text(stamp["devices"]),
        image_digest=_text(stamp["image_digest"]),
    )


def _streams(value: object, keys: SnapshotKeys) -> Iterator[Stream]:
    present = set(value) if isinstance(value, dict) else set()
    expected = [name for name, required in _STREAMS if required or name in present]
    streams = _object(value, expected)
    for name in expected:
        yield _stream(name, streams[name], keys)


def _stream(name: str, value: object, keys: SnapshotKeys) -> Stream:
    stream = _object(value, {"size", "block_size", "packs"})
    size = _int(stream["size"], 0, layout.MAX_STREAM_BYTES[name])
    block_size = _int(stream["block_size"], layout.MIN_BLOCK_BYTES, layout.MAX_BLOCK_BYTES)
    if block_size & (block_size - 1) or size > block_size * layout.MAX_BLOCKS:
        raise ValueError(f"{name} has an impossible block size")
    shape = Stream(name=name, size=size, block_size=block_size, packs=())
    packs: list[Pack] = []
    next_index = 0
    for entry in _array(stream["packs"]):
        packs.append(pack := _pack(entry, shape, next_index))
        next_index = pack.blocks[-1].index + 1
    numbers = [_pack_number(pack.key, name, keys) for pack in packs]
    if numbers != sorted(set(numbers)):
        raise ValueError(f"the packs of {name} are out of order")
    return Stream(name=name, size=size, block_size=block_size, packs=tuple(packs))


def _pack_number(key: str, name: str, keys: SnapshotKeys) -> int:
    digits = key.removeprefix(f"{keys.prefix}{name}.").removesuffix(".pack")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 6) or key != keys.pack(name, int(digits)):
        raise ValueError("a pack lies where it must not")
    return int(digits)


def _pack(value: object, stream: Stream, next_index: int) -> Pack:
    """One pack; its blocks' indexes start at `next_index` or later."""
    pack = _object(value, {"key", "size", "blake3", "blocks"})
    size = _int(pack["size"], 1, layout.MAX_PACK_BYTES)
    blocks: list[Block] = []
    offset = 0
    for row in _array(pack["blocks"]):
        blocks.append(block := _block(row, stream, next_index, offset))
        next_index, offset = block.index + 1, block.offset + block.length
    if not blocks or offset != size:
        raise ValueError("the blocks of a pack do not fill it")
    return Pack(key=_text(pack["key"]), size=size, digest=_digest(pack["blake3"]), blocks=tuple(blocks))


def _block(value: object, stream: Stream, next_index: int, offset: int) -> Block:
    """One block, at `offset` of its pack."""
    row = _array(value)
    if len(row) != 5 or row[1] != offset:
        raise ValueError("a block lies where it must not")
    last_index = (stream.size - 1) // stream.block_size
    index = _int(row[0], next_index, last_index)
    codec = Codec(_text(row[3]))
    plain = stream.plain_bytes(index)
    length = _int(row[2], *((plain, plain) if codec is Codec.RAW else (1, plain - 1)))
    return Block(index, offset, length, codec, _digest(row[4]))


def _object(value: object, names: Collection[str]) -> dict[str, object]:
    if not isinstance(value, dict) or set(value) != set(names):
        raise ValueError(f"expected an object of {', '.join(sorted(names))}")
    return cast("dict[str, object]", value)


def _array(value: object) -> list[object]:
    if not isinstance(value, list):
        raise ValueError("expected an array")
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


def _digest(value: object) -> bytes:
    text = _text(value)
    if not _DIGEST.fullmatch(text):
        raise ValueError("expected a digest")
    return bytes.fromhex(text)
