"""An incomplete disk, and the note of which of its blocks are on this host.

The disk has another name until it is whole, so it never passes for a whole one; the note beside it (`lazy.map`) is a
head that names the snapshot, then one bit a block. Bits are only ever set, and only after the block is durable:
whatever a crash or a power failure leaves of it claims too little, never too much.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hatchvm.base.errors import Corrupt, HatchError
from hatchvm.base.files import sync_dir, write_atomic
from hatchvm.base.paths import VMPaths
from hatchvm.snapshots.layout import SnapshotKeys

Blocks = npt.NDArray[np.bool_]

_HEAD_BYTES = 4096


def create(paths: VMPaths, keys: SnapshotKeys, size: int, blocks: int) -> None:
    """Durably make an incomplete disk of which no block is here."""
    paths.lazy_map.unlink(missing_ok=True)
    paths.partial.unlink(missing_ok=True)
    with paths.partial.open("xb") as file:
        file.truncate(size)
    record = {"vm_id": keys.vm_id, "snapshot_id": keys.snapshot_id, "blocks": blocks}
    write_atomic(paths.lazy_map, json.dumps(record).encode().ljust(_HEAD_BYTES) + bytes(-(-blocks // 8)))


def source(paths: VMPaths) -> SnapshotKeys | None:
    """The snapshot that the disk has to be completed from; None if there is no incomplete one. Raises Corrupt.

    An incomplete disk beside a whole one is what a crash left of a restore: the whole one counts.
    """
    if paths.disk.exists() or not paths.partial.exists():
        return None
    return _read(paths.lazy_map)[0]


def remove(paths: VMPaths) -> None:
    """Forget an incomplete disk."""
    paths.partial.unlink(missing_ok=True)
    paths.lazy_map.unlink(missing_ok=True)


class Ledger:
    """The note of one incomplete disk. Raises Corrupt if it is damaged or belongs to another disk."""

    def __init__(self, paths: VMPaths, blocks: int) -> None:
        _, here, self._bits = _read(paths.lazy_map)
        if here != blocks:
            raise _damaged(paths.lazy_map)
        self._paths = paths
        self._blocks = blocks

    def present(self) -> Blocks:
        return np.unpackbits(np.frombuffer(self._bits, np.uint8), count=self._blocks).astype(np.bool_)

    def record(self, present: Blocks) -> None:
        """Durably note blocks that are durable themselves."""
        bits = np.packbits(present)
        changed = np.flatnonzero(bits != np.frombuffer(self._bits, np.uint8))
        if not len(changed):
            return
        first, last = int(changed[0]), int(changed[-1]) + 1
        fd = os.open(self._paths.lazy_map, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(fd, bits[first:last].tobytes(), _HEAD_BYTES + first)
            os.fdatasync(fd)
        finally:
            os.close(fd)
        self._bits = bits.tobytes()

    def close(self) -> None:
        """The disk is whole and durable: durably say so."""
        self._paths.partial.replace(self._paths.disk)
        sync_dir(self._paths.root)
        self._paths.lazy_map.unlink(missing_ok=True)


def _read(path: Path) -> tuple[SnapshotKeys, int, bytes]:
    try:
        data = path.read_bytes()
        record = json.loads(data[:_HEAD_BYTES])
        keys, blocks = SnapshotKeys(record["vm_id"], record["snapshot_id"]), int(record["blocks"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, HatchError) as error:
        raise _damaged(path) from error
    if len(data) != _HEAD_BYTES + -(-blocks // 8):
        raise _damaged(path)
    return keys, blocks, data[_HEAD_BYTES:]


def _damaged(path: Path) -> Corrupt:
    return Corrupt("the note of what is here of the VM's disk is damaged; restore a snapshot", detail=str(path))
