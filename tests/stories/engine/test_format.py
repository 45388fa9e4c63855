"""Another program, written from docs/internals/snapshot-format.md alone, reads what the engine stored."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hatchvm.snapshots.seal import Ring
from hatchvm.testing.clock import SteeredClock
from hatchvm.testing.objects import MemoryStore
from hatchvm.testing.sleeper import BLOCK, CREATED_AT, FRAME, Sleeper, piece

KEY = bytes(range(32))


def opened(stored: bytes, key_id: bytes, context: bytes, number: int) -> bytes:
    if key_id == bytes(8):
        return stored
    assert key_id == blake3(KEY, derive_key_context="hatch snapshot key id").digest()[:8]
    derived = HKDF(SHA256(), 32, salt=None, info=b"hatch snapshot " + context).derive(KEY)
    return AESGCM(derived).decrypt(struct.pack("<QI", number, 0), stored, None)


def read(objects: dict[str, bytes], vm_id: str, snapshot_id: str) -> tuple[dict[str, Any], dict[str, bytes], list[int]]:
    """(facts, stream name -> content, order)."""
    key = f"snapshots/{vm_id}/{snapshot_id}/manifest"
    data = objects[key]
    magic, version, key_id, salt, check, size = struct.unpack_from("<8sH8s16s32sQ", data)
    assert (magic, version) == (b"HATCHSNP", 2)
    assert blake3(data[:34] + bytes(32) + data[66:]).digest() == check
    plain = zstandard.ZstdDecompressor().decompress(opened(data[74:], key_id, key.encode() + salt, 0))
    assert len(plain) == size
    (length,) = struct.unpack_from("<I", plain)
    facts = json.loads(plain[4 : 4 + length])
    at = 4 + length

    def column(kind: str, count: int) -> list[int]:
        nonlocal at
        values = struct.unpack_from(f"<{count}{kind}", plain, at)
        at += struct.calcsize(f"<{count}{kind}")
        return list(values)

    def summed(count: int) -> list[int]:
        total, values = 0, []
        for step in column("I", count):
            total = (total + step) % 2**32
            values.append(total)
        return values

    count, block = facts["frames"], facts["block_bytes"]
    rows = list(zip(*(column(kind, count) for kind in "IIIHB"), strict=True))
    checks = [plain[at + 32 * n : at + 32 * (n + 1)] for n in range(count)]
    at += 32 * count
    image = blake3(facts["stamp"]["image_digest"].encode()).hexdigest()[:32]
    frames = []
    for (number, offset, length, blocks, codec), frame_check in zip(rows, checks, strict=True):
        pack_id, pack_bytes, pack_key_id = facts["packs"][number]
        pack = objects[f"packs/{image}/{pack_id}"]
        assert len(pack) == pack_bytes
        stored = pack[offset : offset + length]
        assert blake3(stored).digest() == frame_check
        frame = opened(stored, bytes.fromhex(pack_key_id) or bytes(8), pack_id.encode(), offset)
        frames.append(zstandard.ZstdDecompressor().decompress(frame) if codec else frame)
        assert len(frames[-1]) == blocks * block
    streams = {}
    for name, size in facts["streams"]:
        content = b""
        for slot in summed(-(-size // block)):
            frame, place = divmod(slot - 1, 262_144 // block)
            content += frames[frame][place * block : (place + 1) * block] if slot else bytes(block)
        streams[name] = content[:size]
    order = summed(facts["order"])
    assert at == len(plain)
    return facts, streams, order


def read_tail(objects: dict[str, bytes], key: str) -> list[bytes]:
    """The digests of a pack's blocks."""
    pack, pack_id = objects[key], key.rpartition("/")[2]
    magic, version, key_id, _, frames, length, check = struct.unpack("<8sH8sIII32s", pack[-62:])
    assert (magic, version) == (b"HATCHPAK", 2)
    listing = pack[-62 - length : -62]
    assert blake3(listing + pack[-62:-32] + bytes(32) + pack_id.encode()).digest() == check
    listing = opened(listing, key_id, pack_id.encode(), 2**32 - 1)
    table = [struct.unpack_from("<IIIHB32s", listing, 47 * n) for n in range(frames)]
    assert table[-1][1] + table[-1][2] + length + 62 == len(pack)
    rest = listing[47 * frames :]
    digests = [rest[at : at + 24] for at in range(0, len(rest), 24)]
    assert len(digests) == sum(row[3] for row in table)
    return digests


@pytest.mark.parametrize("ring", [Ring(), Ring([KEY])], ids=["open", "sealed"])
async def test_another_program_reads_it(tmp_path: Path, ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hatchvm.snapshots.writer.PACK_FRAMES", 2)
    store = MemoryStore(SteeredClock())
    vm = Sleeper(store, tmp_path, store.clock, ring)
    vm.holds(memory=piece(3 * FRAME, "1") + bytes(FRAME) + piece(FRAME, "text"), state=piece(9, "2"), disk=b"disk")
    await vm.write(1)
    before = vm.content()["memory"]
    memory = before[: 7 * BLOCK] + piece(BLOCK, "3") + before[8 * BLOCK :]
    vm.holds(memory=memory, state=piece(9, "4"), disk=before[:FRAME] + b"end")
    await vm.write(2, bases=[vm.keys(1)], order=np.array([7, 100, 3], np.uint32))
    objects = {key: data for key, (data, _) in store.objects.items()}
    facts, streams, order = read(objects, vm.vm_id, vm.keys(2).snapshot_id)
    content = vm.content()
    assert streams == {"memory": content["memory"], "state": content["state"], "disk": content["disk"]}
    assert order == [7, 100, 3]
    assert facts["created_at"] == CREATED_AT.isoformat()
    assert facts["vm_config"] == '{"name": "ö"}'
    digests = [one for key in objects if key.startswith("packs/") for one in read_tail(objects, key)]
    for data in content.values():
        for at in range(0, len(data), BLOCK):
            block = data[at : at + BLOCK].ljust(BLOCK, b"\0")
            assert not any(block) or blake3(block).digest()[:24] in digests
