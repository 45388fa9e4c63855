"""Between a VM's folder and the object store."""

from __future__ import annotations

import asyncio
import shutil

from hatchvm.base import tasks
from hatchvm.base.errors import Corrupt, NotFound, Unsupported
from hatchvm.base.paths import VMPaths
from hatchvm.domain.image import Image
from hatchvm.domain.snapshot import Snapshot, Stamp
from hatchvm.domain.vm import VM
from hatchvm.node import pair
from hatchvm.node.host import Host, plan
from hatchvm.ports.node import Sizes
from hatchvm.snapshots.local import local_errors
from hatchvm.snapshots.workers import outlast


async def upload(host: Host, vm: VM, snapshot: Snapshot) -> Sizes:
    """Commit the saved pair to the object store, after bringing it to this host's disk."""
    paths = host.paths.vm(vm.id)
    saved = pair.load(paths, host.boot_id)
    if saved is None:
        raise Corrupt("the VM has no saved memory on this host")
    if saved.source not in (None, snapshot.id):
        raise Corrupt("the VM's saved memory is that of another snapshot")
    with local_errors(paths.root):
        saved = await pair.sync(paths, saved)
    manifest = await host.snapshots().write(
        snapshot.id,
        vm.id,
        memory=paths.memory,
        state=paths.state,
        disk=paths.disk if paths.disk.exists() else None,
        stamp=saved.stamp,
        vm_config=snapshot.vm_config,
        created_at=snapshot.created_at,
    )
    return Sizes(manifest.size_bytes, manifest.stored_bytes)


async def committed(host: Host, snapshot: Snapshot) -> Sizes | None:
    """See `ports.node.Node.committed`."""
    try:
        manifest = await host.snapshots().manifest(snapshot.vm_id, snapshot.id)
    except NotFound:
        return None
    return Sizes(manifest.size_bytes, manifest.stored_bytes)


async def fetch(host: Host, vm: VM, image: Image, source: Snapshot) -> None:
    """Replace the VM's saved pair and disk by a committed snapshot's, once every byte is here and verified.

    The order of the last steps: the old marker goes, the files are exchanged, the new marker comes. Killed in between,
    the VM has no saved memory on this host and its next wake fetches again. A cancellation comes before them or not
    at all.
    """
    paths = host.paths.vm(vm.id)
    manifest = await host.snapshots().manifest(source.vm_id, source.id)
    difference = manifest.stamp.difference(await host.driver.stamp(plan(host, vm, image)))
    if difference is not None:
        raise Unsupported(f"the snapshot does not fit this host: {difference}")
    await asyncio.to_thread(shutil.rmtree, paths.incoming, ignore_errors=True)
    try:
        await host.snapshots().fetch(manifest, paths.incoming)
        exchanged = tasks.spawn(
            asyncio.to_thread(_exchange, paths, manifest.stamp, host.boot_id, source.id), name=f"exchange {vm.id}"
        )
        await outlast([exchanged])
        exchanged.result()
    finally:
        await asyncio.to_thread(shutil.rmtree, paths.incoming, ignore_errors=True)


def _exchange(paths: VMPaths, stamp: Stamp, boot_id: str, source: str) -> None:
    with local_errors(paths.root):
        pair.spend(paths)
        for target in (paths.memory, paths.state, paths.disk):
            arrived = paths.incoming / target.name
            if arrived.exists():
                arrived.replace(target)
        pair.commit(paths, stamp=stamp, accepted=frozenset(), boot_id=boot_id, synced=True, source=source)
