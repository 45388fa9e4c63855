"""Small VMs whose snapshots come and go in one object store, and what must be true of it at any time.

What a snapshot holds follows from its id alone, so that whoever finds one, in this process or after a crash in the
next, knows what it must restore. Blocks are drawn from a small pool an image: snapshots of it share many of them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Final

from hatchvm.base import ids
from hatchvm.base.clock import Clock
from hatchvm.domain.snapshot import Stamp
from hatchvm.domain.stored import Collected
from hatchvm.ports.objects import ObjectStore
from hatchvm.snapshots.engine import FILES, Facts, Files, SnapshotEngine
from hatchvm.snapshots.layout import PACKS, SNAPSHOTS, TRASH, SnapshotKeys, keys_of, pack_key
from hatchvm.snapshots.manifest import Manifest
from hatchvm.snapshots.seal import Ring
from hatchvm.testing.vmm import STAMP

GRACE: Final = timedelta(hours=6)
_BLOCK: Final = 4096
_POOL: Final = 60
_BLOCKS: Final = (15, 40)


class Storeroom:
    """One host's engine over `store`. `root`: a folder for its files. VMs are numbers; even ones have another image."""

    def __init__(self, store: ObjectStore, root: Path, clock: Clock, *, ring: Ring | None = None) -> None:
        self.store = store
        self.engine = SnapshotEngine(store, root / "packs", clock, ring=ring, grace=GRACE)
        self._root = root
        self._clock = clock

    async def write(self, keys: SnapshotKeys, bases: Sequence[SnapshotKeys] = ()) -> Manifest:
        """Store the snapshot with these keys."""
        folder = self._root / keys.vm_id
        folder.mkdir(parents=True, exist_ok=True)
        memory, state = folder / "memory", folder / "state"
        memory.write_bytes(content(keys))
        state.write_bytes(keys.snapshot_id.encode())
        facts = Facts(stamp=stamp_of(keys.vm_id), vm_config="{}", created_at=self._clock.now(), bases=bases)
        return await self.engine.write(keys, Files(memory=memory, state=state, disk=None), facts)

    async def collect(self, grace: timedelta = GRACE) -> Collected:
        return await self.engine.collect(grace, rows=self.rows, allow=lambda: None)

    async def rows(self) -> set[str]:
        """Nobody says that anything is stored."""
        return set()

    async def snapshots(self) -> list[SnapshotKeys]:
        """Those that exist."""
        listed = [keys_of(info.key) async for info in self.store.list(SNAPSHOTS)]
        return [keys for keys in listed if keys is not None]

    async def restore(self, keys: SnapshotKeys) -> None:
        """Raises AssertionError, or what the engine raises, unless it comes back as it was stored."""
        manifest, _ = await self.engine.open(keys)
        into = self._root / "restored"
        await self.engine.fetch(manifest, into)
        assert (into / FILES["memory"]).read_bytes() == content(keys), f"{keys} holds something else"
        assert (into / FILES["state"]).read_bytes() == keys.snapshot_id.encode()

    async def unneeded(self) -> set[str]:
        """Objects that no snapshot needs. What a delete that was cut off left beside its manifest is none of them."""
        snapshots, needed = await self.snapshots(), set()
        for keys in snapshots:
            manifest, _ = await self.engine.open(keys)
            needed |= {pack_key(manifest.domain, pack.id) for pack in manifest.packs}
        packs = {info.key async for info in self.store.list(PACKS)}
        trash = {info.key async for info in self.store.list(TRASH) if keys_of(info.key)}
        return (packs - needed) | (trash - {keys.trash for keys in snapshots})


def vm_id(number: int) -> str:
    return f"{ids.VM}-{number:012x}"


def snapshot(vm: int, number: int) -> SnapshotKeys:
    return SnapshotKeys(vm_id(vm), f"{ids.SNAPSHOT}-{number:012x}")


def content(keys: SnapshotKeys) -> bytes:
    """The memory of that snapshot."""
    image = stamp_of(keys.vm_id).image_digest
    which = random.Random(f"{keys}")
    return b"".join(_block(image, which.randrange(_POOL)) for _ in range(which.randint(*_BLOCKS)))


def stamp_of(vm_id: str) -> Stamp:
    return replace(STAMP, image_digest=f"image {int(vm_id.rpartition('-')[2], 16) % 2}")


@cache
def _block(image: str, number: int) -> bytes:
    return random.Random(f"{image} {number}").randbytes(_BLOCK)
