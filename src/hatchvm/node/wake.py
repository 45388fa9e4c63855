"""Resume a saved VM: map its memory file, load its device state, let it run.

The announcement of the wake goes to disk while the VMM starts, so that the guest need not wait for either. The pair is
spent right before the guest runs; until then every failure puts it back untouched. Once it is spent a timeout comes too
late: the guest may run already.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from hatchvm.base import tasks
from hatchvm.base.errors import Corrupt, Exhausted, HatchError
from hatchvm.base.paths import VMPaths
from hatchvm.domain.image import Image
from hatchvm.domain.vm import VM
from hatchvm.node import pair
from hatchvm.node.host import Host, ensure_fit, plan, plugged_in
from hatchvm.node.launch import ensure_room
from hatchvm.node.lazy import Pager
from hatchvm.ports.vmm import Handle, PutRight
from hatchvm.snapshots.workers import outlast

#: How long a guest that has an agent may take to be put right before its clients get it as it is.
_PUT_RIGHT_S: Final = 1.0
#: A reseed in the guest starts a program there, which an emulated CPU may have to page in first.
_PUT_RIGHT_AGAIN_S: Final = 5.0


class Woken(NamedTuple):
    """A live VMM, its guest running. `again`: its memory came from the store, so it may have run before.

    `pager`: who serves its memory, if somebody does.
    """

    handle: Handle
    again: bool
    pager: Pager | None = None


async def wake(host: Host, vm: VM, image: Image, ports: Collection[int]) -> Woken:
    """See `ports.node.Node.wake`. The guest is still to be put right."""
    paths = host.paths.vm(vm.id)
    saved = pair.load(paths, host.boot_id)
    if saved is None:
        raise Corrupt("the VM has no saved memory on this host")
    instead = f"its disk can still be booted: hatchvm vm restore --disk {vm.id}"
    await ensure_fit(host, saved.stamp, plan(host, vm, image), instead=instead)
    ensure_room(paths, vm.spec.mem_mib)
    async with _served(host, paths) as pager:
        handle = await _wake(host, vm, image, ports, saved)
    return Woken(handle, again=saved.source is not None, pager=pager)


@asynccontextmanager
async def _served(host: Host, paths: VMPaths) -> AsyncIterator[Pager | None]:
    """Who serves the saved memory, where the driver opens no file; ended if the wake fails."""
    if not host.driver.memory_by_faults:
        yield None
        return
    pager = await host.pagers.start_whole(paths)
    try:
        yield pager
    except HatchError as error:
        wrong = await pager.wrong()
        await pager.kill()
        raise wrong or error from error
    except BaseException:
        await pager.kill()
        raise


async def _wake(host: Host, vm: VM, image: Image, ports: Collection[int], saved: pair.Saved) -> Handle:
    paths = host.paths.vm(vm.id)
    announced = tasks.spawn(
        asyncio.to_thread(pair.begin_wake, paths, saved, host.boot_id), name=f"announce wake {vm.id}"
    )
    try:
        async with plugged_in(host, vm) as plug:
            written_by = saved.stamp.vmm_version
            handle = await host.driver.restore(
                plan(host, vm, image, ports=ports, accepted=saved.accepted, plug=plug, written_by=written_by)
            )
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


async def wake_lazily(host: Host, vm: VM, image: Image, ports: Collection[int], pager: Pager) -> Woken:
    """As `wake`, on the files that the pager serves. Nothing is spent: if it fails, the snapshot is in the store."""
    ensure_room(host.paths.vm(vm.id), vm.spec.mem_mib)
    try:
        async with plugged_in(host, vm) as plug:
            handle = await host.driver.restore(
                plan(host, vm, image, ports=ports, plug=plug, lazy=True, written_by=pager.written_by)
            )
        try:
            await _resume(vm, handle)
        except HatchError:
            await handle.kill()
            raise
    except HatchError as error:
        raise await pager.wrong() or error from error
    return Woken(handle, again=True, pager=pager)


async def put_right(vm: VM, woken: Woken) -> PutRight:
    """Before anybody may reach the guest. It runs, so a cancellation comes too late."""
    timeout_s = _PUT_RIGHT_AGAIN_S if woken.again else _PUT_RIGHT_S
    work = tasks.spawn(woken.handle.put_right(again=woken.again, timeout_s=timeout_s), name=f"put right {vm.id}")
    await outlast([work])
    try:
        return work.result()
    except HatchError as error:  # whoever watches the VMM learns more
        return PutRight(undone={"clock": str(error)})


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
