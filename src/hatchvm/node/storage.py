"""Between a VM's folder and the object store."""

from __future__ import annotations

import asyncio
import shutil

from hatchvm.base.errors import Corrupt, NotFound, Unsupported
from hatchvm.domain.image import Image
from hatchvm.domain.snapshot import Snapshot
from hatchvm.domain.vm import VM
from hatchvm.node import pair
from hatchvm.node.host import Host, plan
from hatchvm.ports.node import Sizes


async def upload(host: Host, vm: VM, snapshot: Snapshot) -> Sizes:
    """Commit the saved pair to the object store, after bringing it to this host's disk."""
    paths = host.paths.vm(vm.id)
    saved = pair.load(paths, host.boot_id)
    if saved is None:
        raise Corrupt("the VM has no saved memory on this host")
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
    the VM has no saved memory on this host and its next wake fetches again.
    """
    paths = host.paths.vm(vm.id)
    manifest = await host.snapshots().manifest(source.vm_id, source.id)
    difference = manifest.stamp.difference(await host.driver.stamp(plan(host, vm, image)))
    if difference is not None:
        raise Unsupported(f"the snapshot does not fit this host: {difference}")
    shutil.rmtree(paths.incoming, ignore_errors=True)
    paths.incoming.mkdir(parents=True, mode=0o700)
    try:
        await host.snapshots().fetch(manifest, paths.incoming)
        pair.spend(paths)
        for target in (paths.memory, paths.state, paths.disk):
            arrived = paths.incoming / target.name
            if arrived.exists():
                arrived.replace(target)
        await asyncio.to_thread(
            pair.commit, paths, stamp=manifest.stamp, accepted=frozenset(), boot_id=host.boot_id, synced=True
        )
    finally:
        await asyncio.to_thread(shutil.rmtree, paths.incoming, ignore_errors=True)
