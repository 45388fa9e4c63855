"""The files of a VM that sleeps, made of pieces, and an engine that stores and restores them."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from hatchvm.base.clock import Clock
from hatchvm.domain.snapshot import Stamp
from hatchvm.ports.objects import ObjectStore
from hatchvm.snapshots.engine import FILES, Facts, Files, SnapshotEngine
from hatchvm.snapshots.layout import SnapshotKeys
from hatchvm.snapshots.manifest import Manifest
from hatchvm.snapshots.seal import Ring
from hatchvm.snapshots.since import Since
from hatchvm.testing.vmm import STAMP

BLOCK: Final = 4096
FRAME: Final = 64 * BLOCK
CREATED_AT: Final = datetime(2026, 3, 6, 14, 30, 0, 123456, tzinfo=UTC)

#: offset, length, kind: what is written into an otherwise empty file; "zero", "text", or the seed of noise
Piece = tuple[int, int, str]


def sparse(path: Path, size: int, pieces: Sequence[Piece]) -> None:
    """A file of `size` bytes holding those pieces, holes elsewhere."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, length, kind in pieces:
            os.pwrite(file.fileno(), piece(max(0, min(length, size - offset)), kind), offset)


def piece(length: int, kind: str) -> bytes:
    if kind == "zero":
        return bytes(length)
    if kind == "text":
        return (b"all work and no play " * (length // 21 + 1))[:length]
    return random.Random(kind).randbytes(length)


@dataclass
class Sleeper:
    """A VM whose files are `memory`, `state` and (unless `disk` is False) `disk` in the folder `root`/files."""

    store: ObjectStore
    root: Path
    clock: Clock
    ring: Ring = field(default_factory=Ring)
    vm_id: str = "vm-0123456789ab"
    stamp: Stamp = STAMP
    disk: bool = True

    def __post_init__(self) -> None:
        self.files.mkdir(parents=True, exist_ok=True)
        self.engine = self.engine_over(self.store)

    @property
    def files(self) -> Path:
        return self.root / "files"

    def engine_over(self, store: ObjectStore) -> SnapshotEngine:
        """One that remembers what this VM's engine remembers, as after a restart."""
        return SnapshotEngine(store, self.root / "packs", self.clock, ring=self.ring)

    def sibling(self, name: str, vm_id: str, *, image: str | None = None) -> Sleeper:
        """Another VM on another host, with nothing remembered and files of its own."""
        stamp = self.stamp if image is None else replace(self.stamp, image_digest=image)
        return Sleeper(self.store, self.root / name, self.clock, self.ring, vm_id, stamp, self.disk)

    def keys(self, number: int = 1) -> SnapshotKeys:
        return SnapshotKeys(self.vm_id, f"snap-{number:012x}")

    def holds(self, *, memory: bytes = b"", state: bytes = b"", disk: bytes = b"") -> None:
        """Give the files this content."""
        for name, data in {"memory": memory, "state": state, "disk": disk}.items():
            if self.disk or name != "disk":
                (self.files / name).write_bytes(data)

    def content(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.files.iterdir()}

    async def write(
        self,
        number: int = 1,
        *,
        bases: Sequence[SnapshotKeys] = (),
        order: npt.NDArray[np.uint32] | None = None,
        since: Since | None = None,
        engine: SnapshotEngine | None = None,
    ) -> Manifest:
        files = Files(
            memory=self.files / "memory",
            state=self.files / "state",
            disk=self.files / FILES["disk"] if self.disk else None,
        )
        facts = Facts(
            stamp=self.stamp, vm_config='{"name": "ö"}', created_at=CREATED_AT, bases=bases, order=order, since=since
        )
        return await (engine or self.engine).write(self.keys(number), files, facts)

    async def restored(self, number: int = 1, *, engine: SnapshotEngine | None = None) -> dict[str, bytes]:
        """The files that a snapshot brings back."""
        engine = engine or self.engine
        manifest, _ = await engine.open(self.keys(number))
        into = self.root / "into"
        await engine.fetch(manifest, into)
        return {path.name: path.read_bytes() for path in into.iterdir()}
