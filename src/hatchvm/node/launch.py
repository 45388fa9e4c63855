"""Making, booting and halting a VM."""

from __future__ import annotations

import asyncio
import logging
import shutil

from hatchvm.base.errors import Exhausted, Unavailable
from hatchvm.base.paths import VMPaths
from hatchvm.domain.image import Image
from hatchvm.domain.vm import VM
from hatchvm.images.seed import write_seed
from hatchvm.node import pair
from hatchvm.node.host import SSH_PORT, Host, plan
from hatchvm.ports.vmm import Handle

_log = logging.getLogger(__name__)


async def prepare(host: Host, vm: VM, image: Image, user_data: str | None) -> None:
    """Make the VM's folder, seed and disk; on any failure the folder is gone again."""
    paths = host.paths.vm(vm.id)
    try:
        paths.root.mkdir(parents=True, mode=0o700)
        hostname = vm.spec.name or vm.id
        await asyncio.to_thread(write_seed, paths.seed, instance_id=vm.id, hostname=hostname, user_data=user_data)
        if image.boot.rootfs is not None:
            await host.driver.create_disk(image.boot.rootfs, image.boot.rootfs_format, paths.disk)
    except OSError as error:
        shutil.rmtree(paths.root, ignore_errors=True)
        raise Exhausted("no room for the VM's files: the disk is full or not writable", detail=repr(error)) from error
    except BaseException:
        shutil.rmtree(paths.root, ignore_errors=True)
        raise


async def boot(host: Host, vm: VM, image: Image) -> Handle:
    """Start the guest from its disk with fresh memory."""
    paths = host.paths.vm(vm.id)
    forget_memory(paths)
    return await host.driver.launch(plan(host, vm, image))


async def halt(handle: Handle, *, timeout_s: float) -> None:
    """Ask the guest to shut down; end the VMM if it has not by then. Returns when the process is gone."""
    try:
        async with asyncio.timeout(timeout_s):
            if not await handle.running():
                await handle.resume()
            await handle.power_button()
            await handle.wait()
    except (TimeoutError, Unavailable):
        await handle.quit()


def forget_memory(paths: VMPaths) -> None:
    """Drop what a suspend saved; the disk stays."""
    pair.spend(paths)
    paths.state.unlink(missing_ok=True)
    paths.memory.unlink(missing_ok=True)


async def expose_ssh(handle: Handle, vm: VM) -> None:
    """Lead the VM's SSH port on the host to the guest. A port taken by a stranger costs SSH, not the VM."""
    try:
        exposed = vm.ssh_port is not None and await handle.expose(SSH_PORT, vm.ssh_port)
    except Unavailable:  # it ended meanwhile; whoever watches it knows
        return
    if not exposed:
        _log.warning("ssh port is taken by another process", extra={"vm": vm.id, "ssh_port": vm.ssh_port})
