"""Pause, save, let go: the one sequence in which a guest stands still.

    pause ── capture device state ── commit the pair ── (last look) ── end the VMM

Between any two steps somebody may want the VM; then it is resumed at once and never knew. The last look comes right
before the VMM is ended; whoever comes later finds a saved VM and wakes it. Memory is not copied: it is a file
already. Killed anywhere, a restarted daemon finds either a live process or a committed pair.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from hatchvm.base import tasks
from hatchvm.base.errors import Exhausted, HatchError
from hatchvm.base.paths import VMPaths
from hatchvm.domain.image import Image
from hatchvm.domain.vm import VM
from hatchvm.node import changed, pair
from hatchvm.node.host import Host, plan
from hatchvm.node.lazy import Pager
from hatchvm.ports.node import Suspended
from hatchvm.ports.vmm import Handle

#: While the rest of a VM is fetched nobody can tell us that it is wanted: look so often.
_LOOK_S: Final = 0.02


async def save(
    host: Host, vm: VM, image: Image, handle: Handle, pager: Pager | None, wanted: Callable[[], bool]
) -> Suspended | None:
    """Everything up to the last look; None if the VM was wanted and runs on. See `ports.node.Node.suspend`.

    `pager`: who serves its files, if somebody does: they become whole while the guest still runs.
    """
    paths = host.paths.vm(vm.id)
    stamp = replace(await host.driver.stamp(plan(host, vm, image)), vmm_version=handle.version)
    if wanted() or (pager is not None and not await _settled(pager, wanted)):
        return None
    paused_at = time.monotonic()
    try:
        await handle.pause()
        if not wanted():
            await _capture(host, paths, handle)
            if pager is not None:
                await pager.hand_over(paths.memory.name)
        taken_back = wanted()
        if not taken_back:
            pair.commit(paths, stamp=stamp, accepted=handle.accepted, boot_id=host.boot_id, synced=False)
            taken_back = wanted()
    except OSError as error:
        await _take_back(host, vm, handle)
        raise Exhausted(
            "the VM's state could not be written: the disk is full or failing", detail=repr(error)
        ) from error
    except BaseException:
        await _take_back(host, vm, handle)
        raise
    if taken_back:
        await _take_back(host, vm, handle)
        return None
    return Suspended(time.monotonic() - paused_at)


async def _capture(host: Host, paths: VMPaths, handle: Handle) -> None:
    """Killed or failing anywhere, what is known of the memory's changes is right, or nothing is known."""
    since = changed.take(paths, host.boot_id)
    pages = await handle.capture()
    if since is not None and pages is not None:
        changed.write(paths, host.boot_id, since.keys, np.union1d(since.pages, pages))


async def _settled(pager: Pager, wanted: Callable[[], bool]) -> bool:
    """Bring home what is still in the store; False if the VM is wanted before that is done."""
    settling = tasks.spawn(pager.settle(), name="bring home")
    try:
        while not settling.done():
            if wanted():
                return False
            await asyncio.wait([settling], timeout=_LOOK_S)
        settling.result()
    finally:
        await tasks.cancel_and_wait(settling)
    return not wanted()


async def let_go(handle: Handle) -> None:
    """End a VMM whose guest is saved, politely if it listens."""
    try:
        await handle.quit()
    except HatchError:
        await handle.kill()


async def _take_back(host: Host, vm: VM, handle: Handle) -> None:
    """Let the guest run on. The marker goes first: a saved VM must never be one whose guest ran on.

    A VMM that does not obey is ended: a guest that stands still for ever must not pass for a running one.
    """
    pair.spend(host.paths.vm(vm.id))
    try:
        await handle.resume()
    except HatchError:
        await handle.kill()
        raise
