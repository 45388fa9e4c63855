"""Resume a saved VM: map its memory file, load its device state, let it run.

The announcement of the wake goes to disk while the VMM starts, so that the guest need not wait for either. The pair is
spent right before the guest runs; until then every failure puts it back untouched. Once it is spent a timeout comes too
late: the guest may run already.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from hatchvm.base import tasks
from hatchvm.base.errors import Corrupt, Exhausted, HatchError
from hatchvm.domain.image import Image
from hatchvm.domain.vm import VM
from hatchvm.node import pair
from hatchvm.node.host import Host, ensure_fit, plan
from hatchvm.node.launch import ensure_room
from hatchvm.node.lazy import Pager
from hatchvm.ports.vmm import Handle
from hatchvm.snapshots.workers import outlast


async def wake(host: Host, vm: VM, image: Image, ports: Collection[int]) -> Handle:
    """See `ports.node.Node.wake`; returns the live VMM, its guest running."""
    paths = host.paths.vm(vm.id)
    saved = pair.load(paths, host.boot_id)
    if saved is None:
        raise Corrupt("the VM has no saved memory on this host")
    launch_plan = plan(host, vm, image, ports=ports, accepted=saved.accepted)
    instead = f"its disk can still be booted: hatchvm vm restore --disk {vm.id}"
    await ensure_fit(host, saved.stamp, launch_plan, instead=instead)
    ensure_room(paths, vm.spec.mem_mib)
    announced = tasks.spawn(
        asyncio.to_thread(pair.begin_wake, paths, saved, host.boot_id), name=f"announce wake {vm.id}"
    )
    try:
        handle = await host.driver.restore(launch_plan)
    except BaseException:
        await outlast([announced])
        pair.put_back(paths, saved)
        raise
    await outlast([announced])
    try:
        announced.result()
        pair.spend(paths)
    except OSError as error:
        await handle.kill()
        pair.put_back(paths, saved)
        raise Exhausted(
            "the wake could not be written down: the disk is full or failing", detail=repr(error)
        ) from error
    try:
        await _resume(vm, handle)
    except HatchError:
        if await _end(handle):
            pair.put_back(paths, saved)
        raise
    return handle


async def wake_lazily(host: Host, vm: VM, image: Image, ports: Collection[int], pager: Pager) -> Handle:
    """As `wake`, on the files that the pager serves. Nothing is spent: if it fails, the snapshot is in the store."""
    ensure_room(host.paths.vm(vm.id), vm.spec.mem_mib)
    try:
        handle = await host.driver.restore(plan(host, vm, image, ports=ports, lazy=True))
        try:
            await _resume(vm, handle)
        except HatchError:
            await handle.kill()
            raise
    except HatchError as error:
        raise await pager.wrong() or error from error
    return handle


async def _resume(vm: VM, handle: Handle) -> None:
    """Let the guest run, even if cancelled meanwhile: it may run already."""
    resumed = tasks.spawn(handle.resume(), name=f"resume {vm.id}")
    await outlast([resumed])
    resumed.result()


async def _end(handle: Handle) -> bool:
    """End a VMM that did not resume its guest; True if the guest surely never ran."""
    try:
        stood_still = not await handle.running()
    except HatchError:
        stood_still = False
    await handle.kill()
    return stood_still
