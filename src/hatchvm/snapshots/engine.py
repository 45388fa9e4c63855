"""The snapshot engine: stores, checks, fetches and removes snapshots in an object store.

A snapshot exists if its manifest exists, and the manifest is written last. Everything else (packs of an upload that was
cut off, packs left by a delete that was) is garbage that `list` shows as not committed. One write per snapshot at a
time: the VM's owner sees to that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Final, NamedTuple

from hatchvm.base.errors import Conflict, Invalid, NotFound
from hatchvm.base.files import sync_dir, sync_file
from hatchvm.base.tasks import spawn
from hatchvm.domain.snapshot import Stamp
from hatchvm.ports.objects import ObjectStore
from hatchvm.snapshots import layout
from hatchvm.snapshots.layout import SnapshotKeys, keys_of, vm_prefix
from hatchvm.snapshots.local import local_errors
from hatchvm.snapshots.manifest import Manifest, encode
from hatchvm.snapshots.parse import decode
from hatchvm.snapshots.reader import Reader
from hatchvm.snapshots.workers import Stop, Workers, outlast
from hatchvm.snapshots.writer import Writer

#: stream -> the file `fetch` makes of it, named as in a VM's folder.
FILES: Final = {layout.MEMORY: "memory", layout.STATE: "state", layout.DISK: "disk.qcow2"}


class Stored(NamedTuple):
    """What lies in the store under one snapshot's prefix. `modified_at`: of its newest object."""

    vm_id: str
    snapshot_id: str
    committed: bool
    modified_at: datetime


class SnapshotEngine:
    """Snapshots over an object store. At most two threads work at a time, however many calls are under way.

    A call takes at most about 80 MiB of memory, plus 0.3 KiB per stored block. Every method raises Unavailable if the
    store or a file cannot be used, Exhausted if the store (or, fetching, this host's disk) is full, and Invalid for an
    id that is none.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._workers = Workers()

    async def write(
        self,
        snapshot_id: str,
        vm_id: str,
        *,
        memory: Path,
        state: Path,
        disk: Path | None,
        stamp: Stamp,
        vm_config: str,
        created_at: datetime,
    ) -> Manifest:
        """Store the three files, which must not change meanwhile, and commit them as a snapshot.

        Cancelled, it stops within one block, has let go of the files when it ends, and never commits later; packs may
        be left behind. A cancellation that arrives while the commit itself is under way waits for its outcome: if it
        succeeded the manifest is returned as if nothing had happened, else CancelledError is raised.

        Raises Conflict if the snapshot exists or a file shrinks, Corrupt if a file is missing, Unsupported if one is
        larger than the format allows.
        """
        keys = SnapshotKeys(vm_id, snapshot_id)
        if len(vm_config.encode()) > layout.MAX_VM_CONFIG:
            raise Invalid(f"vm_config must not be longer than {layout.MAX_VM_CONFIG} bytes")
        await self._clear(keys)
        files = {layout.MEMORY: memory, layout.STATE: state} | ({layout.DISK: disk} if disk else {})
        streams = await Writer(self._store, self._workers, keys).write(files)
        draft = Manifest(
            snapshot_id=snapshot_id,
            vm_id=vm_id,
            created_at=created_at,
            stamp=stamp,
            vm_config=vm_config,
            streams=streams,
        )
        manifest, data = await self._workers.run(lambda _: encode(draft))
        await self._commit(keys, data)
        return manifest

    async def manifest(self, vm_id: str, snapshot_id: str) -> Manifest:
        """Raises NotFound if there is no such snapshot, Corrupt if it is damaged, Unsupported if it is too new."""
        keys = SnapshotKeys(vm_id, snapshot_id)
        try:
            data = await self._store.get(keys.manifest, length=layout.MAX_MANIFEST_BYTES + 1)
        except NotFound as error:
            raise NotFound(f"snapshot {snapshot_id} is not in the object store") from error
        return await self._workers.run(lambda _: decode(data, keys))

    async def fetch(self, manifest: Manifest, into: Path) -> None:
        """Write the files of a snapshot (see FILES) into the folder `into`, sparse, verified and synced.

        Files of these names are replaced; if it fails or is cancelled, none is left. Raises Corrupt naming the damaged
        object.
        """
        with local_errors(into):
            into.mkdir(mode=0o700, parents=True, exist_ok=True)
        reader = Reader(self._store, self._workers)
        try:
            for stream in manifest.streams:
                await reader.fetch(stream, into / FILES[stream.name])
            await self._workers.run(lambda stop: _sync(into, stop))
        except BaseException:
            await outlast([spawn(asyncio.to_thread(_remove, into), name=f"clear {into.name}")])
            raise

    async def check(self) -> None:
        """Prove that the store can be written and read now."""
        await self._store.check()

    async def verify(self, manifest: Manifest) -> None:
        """Read everything. Raises Corrupt naming the damaged object."""
        reader = Reader(self._store, self._workers)
        for stream in manifest.streams:
            await reader.verify(stream)

    async def delete(self, vm_id: str, snapshot_id: str) -> None:
        """Remove a snapshot, or what is left of one. May be repeated."""
        keys = SnapshotKeys(vm_id, snapshot_id)
        await self._store.delete(keys.manifest)
        await self._delete_all(keys.prefix)

    async def delete_vm(self, vm_id: str) -> None:
        """Remove everything stored for a VM. May be repeated."""
        snapshots = [stored.snapshot_id async for stored in self._list(vm_prefix(vm_id))]
        for snapshot_id in snapshots:
            await self.delete(vm_id, snapshot_id)
        await self._delete_all(vm_prefix(vm_id))

    def list(self) -> AsyncIterator[Stored]:
        """Every snapshot of which anything is stored, by VM id and snapshot id."""
        return self._list(layout.ROOT)

    async def _list(self, prefix: str) -> AsyncIterator[Stored]:
        current: Stored | None = None
        async for info in self._store.list(prefix):
            keys = keys_of(info.key)
            if keys is None:
                continue
            found = Stored(keys.vm_id, keys.snapshot_id, info.key == keys.manifest, info.modified_at)
            if current and current[:2] == found[:2]:
                newest = max(current.modified_at, found.modified_at)
                current = found._replace(committed=current.committed or found.committed, modified_at=newest)
            else:
                if current:
                    yield current
                current = found
        if current:
            yield current

    async def _clear(self, keys: SnapshotKeys) -> None:
        """Remove what an earlier attempt left. Raises Conflict if that attempt succeeded."""
        left = [info.key async for info in self._store.list(keys.prefix)]
        if keys.manifest in left:
            raise Conflict(f"snapshot {keys.snapshot_id} is already in the object store")
        for key in left:
            await self._store.delete(key)

    async def _delete_all(self, prefix: str) -> None:
        for key in [info.key async for info in self._store.list(prefix)]:
            await self._store.delete(key)

    async def _commit(self, keys: SnapshotKeys, data: bytes) -> None:
        put = spawn(self._put_manifest(keys, data), name=f"commit {keys.snapshot_id}")
        cancels = await outlast([put])
        if cancels and put.exception():
            raise asyncio.CancelledError from put.exception()
        me = asyncio.current_task()
        for _ in range(cancels):
            if me:
                me.uncancel()
        put.result()

    async def _put_manifest(self, keys: SnapshotKeys, data: bytes) -> None:
        try:
            await self._store.put(keys.manifest, data, if_absent=True)
        except Conflict:
            # A store that was asked twice, because the first answer got lost, finds our own manifest there.
            if await self._store.get(keys.manifest, length=len(data) + 1) != data:
                raise


def _sync(into: Path, stop: Stop) -> None:
    with local_errors(into):
        for path in _files(into):
            if path.exists() and not stop.is_set():
                sync_file(path)
        sync_dir(into)


def _remove(into: Path) -> None:
    with local_errors(into):
        for path in _files(into):
            path.unlink(missing_ok=True)


def _files(into: Path) -> list[Path]:
    return [into / name for name in FILES.values()]
