"""Between a VM's folder and the object store."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Collection, Sequence

import numpy as np

from hatchvm.base import tasks
from hatchvm.base.errors import Corrupt, NotFound, Unsupported
from hatchvm.base.files import sync_dir
from hatchvm.base.paths import VMPaths
from hatchvm.domain.image import Image
from hatchvm.domain.snapshot import Snapshot
from hatchvm.domain.vm import VM
from hatchvm.node import changed, pair, touched
from hatchvm.node.host import Host, ensure_fit, plan
from hatchvm.node.lazy import Pager
from hatchvm.pager import ledger
from hatchvm.ports.node import Sizes
from hatchvm.snapshots import layout
from hatchvm.snapshots.engine import FILES, Facts, Files
from hatchvm.snapshots.layout import SnapshotKeys
from hatchvm.snapshots.local import local_errors
from hatchvm.snapshots.manifest import Manifest
from hatchvm.snapshots.workers import outlast


async def upload(host: Host, vm: VM, snapshot: Snapshot, bases: Sequence[Snapshot]) -> Sizes:
    """Commit the saved pair to the object store, after bringing it to this host's disk. See `Node.upload`."""
    paths = host.paths.vm(vm.id)
    saved = pair.load(paths, host.boot_id)
    if saved is None:
        raise Corrupt("the VM has no saved memory on this host")
    if saved.source not in (None, snapshot.id):
        raise Corrupt("the VM's saved memory is that of another snapshot")
    with local_errors(paths.root):
        saved = await pair.sync(paths, saved)
    disk = paths.disk if paths.disk.exists() else None
    manifest = await host.snapshots().write(
        keys_of(snapshot),
        Files(memory=paths.memory, state=paths.state, disk=disk),
        Facts(
            stamp=saved.stamp,
            vm_config=snapshot.vm_config,
            created_at=snapshot.created_at,
            bases=[keys_of(base) for base in bases],
            order=touched.read(paths),
            since=changed.read(paths, host.boot_id),
        ),
    )
    changed.write(paths, host.boot_id, manifest.keys)
    return Sizes(manifest.size_bytes, manifest.stored_bytes)


def keys_of(snapshot: Snapshot) -> SnapshotKeys:
    return SnapshotKeys(snapshot.vm_id, snapshot.id)


async def committed(host: Host, snapshot: Snapshot) -> Sizes | None:
    """See `ports.node.Node.committed`."""
    try:
        manifest, _ = await host.snapshots().open(keys_of(snapshot))
    except NotFound:
        return None
    return Sizes(manifest.size_bytes, manifest.stored_bytes)


async def verify(host: Host, snapshot: Snapshot) -> int:
    """See `ports.node.Node.verify`."""
    manifest, data = await host.snapshots().open(keys_of(snapshot))
    await host.snapshots().verify(manifest)
    return len(data) + int(manifest.frames["length"].sum(dtype=np.int64))


async def fetch(host: Host, vm: VM, image: Image, source: Snapshot, *, lazily: bool) -> Pager | None:
    """Replace the VM's saved pair and disk by a committed snapshot's, once every byte is here and verified.

    `lazily`, and where this host can do it, only the device state is fetched now: the pager that is returned serves
    memory and disk, and what the VM had on this host is gone whatever comes of it.
    Raises Unsupported, before anything is fetched, if the memory cannot be resumed here.
    """
    manifest, data = await host.snapshots().open(keys_of(source))
    if source.vm_id == vm.id:
        instead = f"its disk can still be booted: hatchvm vm restore --disk --snapshot {source.id} {vm.id}"
    else:
        instead = "copy it on a host like the one it was made on"
    await ensure_fit(host, manifest.stamp, plan(host, vm, image), instead=instead)
    if lazily and host.pagers.lazy:
        return await _begin(host, vm, manifest, data)

    def mark(paths: VMPaths) -> None:
        pair.commit(
            paths, stamp=manifest.stamp, accepted=frozenset(), boot_id=host.boot_id, synced=True, source=source.id
        )
        changed.write(paths, host.boot_id, manifest.keys)

    await _replace(host, vm, manifest, FILES, mark)
    return None


def made_by(manifest: Manifest) -> str:
    """The driver whose format the snapshot's disk has."""
    return manifest.stamp.vmm.lower()


async def _begin(host: Host, vm: VM, manifest: Manifest, data: bytes) -> Pager:
    """Device state, empty files, and a pager that fills them. From here on the VM has no saved pair on this host."""
    paths, engine = host.paths.vm(vm.id), host.snapshots()
    where = await engine.locate(manifest)
    await tasks.finish(asyncio.to_thread(_hollow, paths, manifest), name=f"hollow {vm.id}")
    faults = host.driver.lazy_memory == "faults"
    starting = tasks.spawn(
        host.pagers.start(paths, manifest.keys, where, data, mounted=True, faults=faults), name=f"pager {vm.id}"
    )
    try:
        await _replace(
            host, vm, manifest, {layout.STATE}, lambda paths: changed.write(paths, host.boot_id, manifest.keys)
        )
        pager = await asyncio.shield(starting)
        pager.written_by = manifest.stamp.vmm_version
        return pager
    except BaseException:
        await outlast([starting])
        if not starting.exception():
            await starting.result().kill()
        raise


def _hollow(paths: VMPaths, manifest: Manifest) -> None:
    """Memory and disk of which nothing is here. The old disk goes for good once the new one is durable."""
    with local_errors(paths.root):
        _empty(paths, manifest)


def _empty(paths: VMPaths, manifest: Manifest) -> None:
    paths.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    pair.spend(paths)
    changed.forget(paths)
    sync_dir(paths.root)  # the old marker must not come back beside memory that is not its own
    sizes = {stream.name: (stream.size, len(stream.slots)) for stream in manifest.streams}
    paths.made_by.write_text(made_by(manifest))
    paths.memory.unlink(missing_ok=True)
    with paths.memory.open("xb") as memory:
        memory.truncate(sizes[layout.MEMORY][0])
    ledger.remove(paths)
    if layout.DISK in sizes:
        ledger.create(paths, manifest.keys, *sizes[layout.DISK])
    paths.disk.unlink(missing_ok=True)
    sync_dir(paths.root)
    touched.write(paths, manifest.order * np.uint32(manifest.block_bytes // layout.MIN_BLOCK_BYTES))


async def fetch_disk(host: Host, vm: VM, image: Image, source: Snapshot) -> None:
    """Replace the VM's disk by a committed snapshot's, once all of it is here and verified; saved memory is forgotten.

    The memory that belongs to that disk may fit no host: only the image under the disk must be the same.
    """
    manifest, _ = await host.snapshots().open(keys_of(source))
    maker = made_by(manifest)
    if maker != host.driver.name:
        raise Unsupported(f"the snapshot's disk was made by {maker}; start Hatch with HATCH_VMM={maker} to restore it")
    if manifest.stamp.image_digest != image.digest:
        raise Unsupported("the snapshot's disk lies over another image than the VM has; restore it where it was made")
    if layout.DISK not in {stream.name for stream in manifest.streams}:
        raise Unsupported("the snapshot holds no disk; start the VM to boot it anew")
    await _replace(host, vm, manifest, {layout.DISK}, lambda paths: None)


async def _replace(
    host: Host, vm: VM, manifest: Manifest, only: Collection[str], mark: Callable[[VMPaths], None]
) -> None:
    """The order of the last steps: the old marker goes, the files are exchanged, the new marker comes (`mark`).

    Killed in between, the VM has no saved memory on this host and its next wake fetches again. A cancellation comes
    before them or not at all.
    """
    paths = host.paths.vm(vm.id)
    await asyncio.to_thread(shutil.rmtree, paths.incoming, ignore_errors=True)
    try:
        await host.snapshots().fetch(manifest, paths.incoming, only=only)
        exchanged = tasks.spawn(asyncio.to_thread(_exchange, paths, made_by(manifest), mark), name=f"exchange {vm.id}")
        await outlast([exchanged])
        exchanged.result()
    finally:
        await asyncio.to_thread(shutil.rmtree, paths.incoming, ignore_errors=True)


def _exchange(paths: VMPaths, maker: str, mark: Callable[[VMPaths], None]) -> None:
    with local_errors(paths.root):
        pair.spend(paths)
        changed.forget(paths)
        paths.made_by.write_text(maker)  # before the disk: killed in between, it must not pass for another driver's
        for target in (paths.memory, paths.state, paths.disk):
            arrived = paths.incoming / target.name
            if arrived.exists():
                arrived.replace(target)
        if paths.disk.exists():
            ledger.remove(paths)
        mark(paths)
