"""After a restart of the daemon: take back what still runs, undo what was half done, remove what nobody knows."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Collection
from typing import Final, NamedTuple

from hatchvm.base.errors import Corrupt, HatchError
from hatchvm.base.paths import VMPaths
from hatchvm.domain.image import Image
from hatchvm.domain.lifecycle import Found, State
from hatchvm.domain.vm import VM
from hatchvm.node import changed, lazy, pair
from hatchvm.node.host import Host, plan
from hatchvm.node.launch import forget_memory, old_disk
from hatchvm.node.lazy import Pager
from hatchvm.pager.mount import is_mounted
from hatchvm.ports.vmm import Handle

AT_REST: Final = frozenset({State.STOPPING, State.STOPPED, State.ERROR, State.DELETING})


class Adopted(NamedTuple):
    """What there is, and the processes that live."""

    found: Found
    handle: Handle | None = None
    pager: Pager | None = None


async def adopt(host: Host, vm: VM, image: Image) -> Adopted:
    """What there is of the VM on this host. A paused guest without a saved pair is resumed: its suspend was cut off,
    or its wake was nearly done. With a pair it is ended: it has not run since, and its wake is like any other. A pager
    lives as long as its VMM, and a VMM no longer than its pager.

    A VM whose row says that it has no process has none afterwards, and no saved memory.
    """
    paths = host.paths.vm(vm.id)
    _rename_old(paths)
    pager = await asyncio.to_thread(lazy.find, paths)
    handle = None
    if vm.state not in AT_REST and (pager is not None or not await asyncio.to_thread(_served, paths)):
        handle = await _live(host, vm, image)
    if handle is not None:
        return Adopted(Found.RUNNING, handle, pager)
    await host.driver.kill_stray(paths)
    if pager is not None:
        await pager.end()
    await lazy.kill_stray(paths)
    if vm.state in AT_REST:
        forget_memory(paths)
        return Adopted(Found.DISK)
    return Adopted(Found.SAVED if _usable(host, paths) else Found.DISK)


def _served(paths: VMPaths) -> bool:
    """There was a pager whose end nobody has seen: only then are its mount and its socket taken away."""
    return paths.faults.exists() or is_mounted(paths.lazy)


def _rename_old(paths: VMPaths) -> None:
    """A VMM that has the disk open does not notice."""
    old = old_disk(paths)
    if old.exists() and not paths.disk.exists():
        old.rename(paths.disk)


async def _live(host: Host, vm: VM, image: Image) -> Handle | None:
    """The VMM, its guest running; None if there is none, or one that must not go on."""
    paths = host.paths.vm(vm.id)
    try:
        handle = await host.driver.adopt(plan(host, vm, image))
        if handle is not None:
            runs = await handle.running()
            if runs or not (paths.saved.exists() or paths.waking.exists()):
                pair.spend(paths)
                changed.forget(paths)  # of a capture that was cut off nobody knows how far it got
                if not runs:
                    await handle.resume()
                return handle
            await handle.kill()
    except HatchError:  # alive but deaf, or it ended while we looked
        pass
    return None


def _usable(host: Host, paths: VMPaths) -> bool:
    try:
        saved = pair.load(paths, host.boot_id)
    except Corrupt:
        return False
    if saved is None:
        return False
    if paths.waking.exists():
        pair.put_back(paths, saved)
    return True


async def sweep(host: Host, known: Collection[str]) -> list[str]:
    """End the processes and remove the folders of VMs that have no row."""
    swept: list[str] = []
    if not host.paths.vms.is_dir():
        return swept
    for folder in sorted(host.paths.vms.iterdir()):
        if folder.name in known:
            continue
        await host.driver.kill_stray(host.paths.vm(folder.name))
        await lazy.kill_stray(host.paths.vm(folder.name))
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        swept.append(folder.name)
    return swept
