"""The snapshot engine: stores, checks, fetches and removes snapshots in an object store.

A snapshot exists if its manifest exists, and the manifest is written last. Packs are shared: a snapshot refers to what
the VM's earlier snapshots, and other VMs of its image, have stored. So deleting one removes its manifest only, and
`collect` removes the packs that no manifest needs any more. One write per snapshot at a time: the VM's owner sees
to that.

Why a pack that is about to be referred to is never collected: a write refers to packs of manifests that it saw when it
began, and to packs stored by this VM less than half the grace period ago, and gives up after a quarter of it. A deleted
snapshot's manifest is moved to `trash/`, where it protects its packs for the whole grace period, and a young pack
protects itself.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from hatchvm.base.clock import Clock
from hatchvm.base.errors import Conflict, HatchError, Invalid, NotFound, Unavailable
from hatchvm.base.files import sync_dir, sync_file
from hatchvm.base.tasks import spawn
from hatchvm.domain.snapshot import Stamp
from hatchvm.domain.stored import Audit, Collected
from hatchvm.ports.objects import ObjectStore
from hatchvm.ports.vmm import Pages
from hatchvm.snapshots import layout
from hatchvm.snapshots.audit import audit
from hatchvm.snapshots.collect import Rule, collect
from hatchvm.snapshots.known import Known
from hatchvm.snapshots.layout import SnapshotKeys, domain_of, pack_key, vm_prefix
from hatchvm.snapshots.local import local_errors
from hatchvm.snapshots.manifest import Manifest, Pack, encode
from hatchvm.snapshots.reader import Reader
from hatchvm.snapshots.seal import Ring
from hatchvm.snapshots.shelf import Shelf, manifests
from hatchvm.snapshots.since import Since
from hatchvm.snapshots.tails import Tails
from hatchvm.snapshots.workers import Stop, Workers, outlast
from hatchvm.snapshots.writer import Content, Writer

#: stream -> the file `fetch` makes of it, named as in a VM's folder.
FILES: Final = {layout.MEMORY: "memory", layout.STATE: "state", layout.DISK: "disk"}

#: How long what no manifest refers to is kept. An upload may take a quarter of it.
GRACE: Final = timedelta(hours=6)
#: A check that succeeded is not repeated for so long: it takes several requests, and orchestrators ask often.
_CHECKED_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """The files of a suspended VM. `disk` is None if it has none."""

    memory: Path
    state: Path
    disk: Path | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Facts:
    """What a manifest says beside the files. `bases`: snapshots whose blocks may be referred to, the VM's newest first.
    `order`: pages of 4 KiB of the memory in the order in which the last wake needed them, as far as that is known.
    `since`: which pages of the memory need not be read because a snapshot has them, as far as that is known.
    """

    stamp: Stamp
    vm_config: str
    created_at: datetime
    bases: Sequence[SnapshotKeys] = ()
    order: Pages | None = None
    since: Since | None = None


class SnapshotEngine:
    """Snapshots over an object store. At most two threads work at a time, however many calls are under way.

    A call takes at most about 100 MiB of memory, plus about 80 bytes a block of the VM and of its bases. Every method
    raises Unavailable if the store or a file cannot be used, Exhausted if the store (or this host's disk) is full,
    Invalid for an id that is none, and Unsupported for what was encrypted with a key that is not in `ring`.
    """

    def __init__(
        self, store: ObjectStore, packs: Path, clock: Clock, *, ring: Ring | None = None, grace: timedelta = GRACE
    ) -> None:
        """`packs`: a folder for what is remembered of the store's packs."""
        self._store = store
        self._tails = Tails(packs)
        self._clock = clock
        self._ring = ring or Ring()
        self._grace = grace
        self._workers = Workers()
        self._shelf = Shelf(store, self._workers, self._ring)
        self._checked_at_s: float | None = None

    async def write(self, keys: SnapshotKeys, files: Files, facts: Facts) -> Manifest:
        """Store the files, which must not change meanwhile, and commit them as a snapshot.

        Cancelled, it stops within a few megabytes, has let go of the files when it ends, and never commits later; packs
        that it stored are used by the VM's next write. A cancellation that arrives while the commit itself is under way
        waits for its outcome: if it succeeded the manifest is returned as if nothing had happened, else CancelledError
        is raised.

        Raises Conflict if the snapshot exists or a file changes, Corrupt if a file is missing, Unsupported if one is
        larger than the format allows.
        """
        if len(facts.vm_config.encode()) > layout.MAX_VM_CONFIG:
            raise Invalid(f"vm_config must not be longer than {layout.MAX_VM_CONFIG} bytes")
        await self._refuse_existing(keys)
        began_s = self._clock.monotonic()
        content = await self._store_files(keys.vm_id, files, facts)
        draft = Manifest(
            snapshot_id=keys.snapshot_id,
            vm_id=keys.vm_id,
            created_at=facts.created_at,
            stamp=facts.stamp,
            vm_config=facts.vm_config,
            block_bytes=content.block_bytes,
            packs=content.packs,
            frames=content.frames,
            streams=content.streams,
            order=_order(facts.order, content),
            added_bytes=content.added_bytes,
        )
        manifest, data = await self._workers.run(lambda _: encode(draft, self._ring))
        if self._clock.monotonic() - began_s > self._grace.total_seconds() / 4:
            raise Unavailable(
                "storing the snapshot took too long, it begins anew; HATCH_SNAPSHOT_GRACE may be too short"
            )
        await self._commit(keys, data)
        self._tails.finished(keys.vm_id)
        return manifest

    async def open(self, keys: SnapshotKeys) -> tuple[Manifest, bytes]:
        """The manifest, and the object as stored.

        Raises NotFound if there is no such snapshot, Corrupt if it is damaged, Unsupported if it is too new.
        """
        try:
            data, said = await self._shelf.look(keys, keys.manifest)
        except NotFound as error:
            raise NotFound(f"snapshot {keys.snapshot_id} is not in the object store") from error
        if isinstance(said, HatchError):
            raise said
        return said, data

    async def fetch(self, manifest: Manifest, into: Path, *, only: Collection[str] = tuple(FILES)) -> None:
        """Write the files of a snapshot (see FILES), or only some, into the folder `into`: sparse, verified, synced.

        Files of these names are replaced; if it fails or is cancelled, none is left. Raises Corrupt naming the damaged
        object.
        """
        with local_errors(into):
            into.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            await self._reader(manifest).fetch({name: into / FILES[name] for name in only})
            await self._workers.run(lambda stop: _sync(into, stop))
        except BaseException:
            await outlast([spawn(asyncio.to_thread(_remove, into), name=f"clear {into.name}")])
            raise

    async def locate(self, manifest: Manifest) -> dict[str, str]:
        """Pack id -> where another process on this host can read the pack: see `ports.objects.ObjectStore.locate`."""
        return {pack.id: await self._store.locate(pack_key(manifest.domain, pack.id)) for pack in manifest.packs}

    async def check(self) -> None:
        """Prove that the store can be written and read, now or a few seconds ago. A failure is not remembered."""
        if self._checked_at_s is None or self._clock.monotonic() - self._checked_at_s >= _CHECKED_S:
            await self._store.check()
            self._checked_at_s = self._clock.monotonic()

    async def verify(self, manifest: Manifest) -> None:
        """Read everything. Raises Corrupt naming the damaged object."""
        await self._reader(manifest).verify()

    async def delete(self, keys: SnapshotKeys) -> None:
        """Remove a snapshot. May be repeated. Its packs stay until nobody can need them: see `collect`."""
        try:
            data, _ = await self._shelf.look(keys, keys.manifest)
        except NotFound:
            return
        await self._store.put(keys.trash, data)
        await self._store.delete(keys.manifest)

    async def delete_vm(self, vm_id: str) -> None:
        """Remove all snapshots of a VM. May be repeated."""
        while found := manifests(await self._shelf.under(vm_prefix(vm_id))):
            for keys in found:
                await self.delete(keys)
        self._tails.finished(vm_id)

    @property
    def grace(self) -> timedelta:
        """How long what nothing refers to is kept, usually."""
        return self._grace

    async def collect(
        self, grace: timedelta, *, rows: Callable[[], Awaitable[Collection[str]]], allow: Callable[[], None]
    ) -> Collected:
        """Remove what nobody needs: see `collect`. `rows`, `allow`: see `collect.Rule`."""

        def allowed() -> None:
            allow()
            self._tails.forget_uploads()

        rule = Rule(grace=grace, usual=self._grace, rows=rows, allow=allowed)
        done, left = await collect(self._shelf, self._clock, rule)
        await asyncio.to_thread(self._tails.keep_only, {key.rpartition("/")[2] for key in left})
        return done

    async def audit(self, rows: Collection[str]) -> Audit:
        """What is stored, and what is wrong with it. `rows`: ids of the snapshots that are said to be stored."""
        return await audit(self._shelf, rows, self._clock.now() - self._grace)

    def _reader(self, manifest: Manifest) -> Reader:
        return Reader(self._store, self._workers, manifest, self._ring)

    async def _store_files(self, vm_id: str, files: Files, facts: Facts) -> Content:
        domain = domain_of(facts.stamp.image_digest)
        now_s = self._clock.now().timestamp()
        recent = self._tails.unfinished(vm_id, now_s - self._grace.total_seconds() / 2)
        known, base = await Known(self._shelf, self._tails, domain).of(facts.bases, recent, facts.since)

        def stored(pack: Pack, tail: bytes) -> None:
            self._tails.put(pack, tail)
            self._tails.begun(vm_id, pack, self._clock.now().timestamp())

        writer = Writer(self._store, self._workers, self._ring, domain)
        content = await writer.write(_named(files), known, base, stored)
        mine = {pack.id for pack in recent}
        return replace(content, added_bytes=content.added_bytes + sum(p.size for p in content.packs if p.id in mine))

    async def _refuse_existing(self, keys: SnapshotKeys) -> None:
        with contextlib.suppress(NotFound):
            await self._store.info(keys.manifest)
            raise Conflict(f"snapshot {keys.snapshot_id} is already in the object store")

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


def _named(files: Files) -> dict[str, Path]:
    named = {layout.MEMORY: files.memory, layout.STATE: files.state}
    return named | ({layout.DISK: files.disk} if files.disk else {})


def _order(pages: Pages | None, content: Content) -> npt.NDArray[np.uint32]:
    """The blocks of those pages that are not zeros, each once."""
    if pages is None:
        return np.zeros(0, np.uint32)
    slots = content.streams[0].slots
    blocks = pages // np.uint32(content.block_bytes // layout.MIN_BLOCK_BYTES)
    blocks = blocks[blocks < len(slots)]
    _, first = np.unique(blocks, return_index=True)
    once: npt.NDArray[np.uint32] = blocks[np.sort(first)]
    return once[slots[once] > 0]


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
