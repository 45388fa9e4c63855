"""Making, booting and halting a VM."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from hatchvm.base.errors import Exhausted, HatchError, Unsupported
from hatchvm.base.files import allocated_bytes
from hatchvm.base.paths import VMPaths
from hatchvm.base.units import MIB, format_bytes
from hatchvm.domain.image import Image
from hatchvm.domain.vm import VM
from hatchvm.images.seed import write_seed
from hatchvm.node import changed, lazy, pair
from hatchvm.node.host import Host, plan, plugged_in
from hatchvm.node.suspend import let_go
from hatchvm.pager import ledger
from hatchvm.ports.vmm import Handle


async def prepare(host: Host, vm: VM, image: Image, user_data: str | None) -> None:
    """Make the VM's folder, seed and disk; on any failure the folder is gone again. The disk comes last, and whole."""
    paths = host.paths.vm(vm.id)
    try:
        paths.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        hostname = vm.spec.name or vm.id
        keys = _house_keys(host)
        await asyncio.to_thread(
            write_seed, paths.seed, instance_id=vm.id, hostname=hostname, user_data=user_data, public_keys=keys
        )
        if image.boot.rootfs is not None:
            unfinished = paths.disk.with_suffix(".new")
            unfinished.unlink(missing_ok=True)
            await host.driver.create_disk(image.boot.rootfs, image.boot.rootfs_format, unfinished)
            paths.made_by.write_text(host.driver.name)
            unfinished.replace(paths.disk)
    except OSError as error:
        shutil.rmtree(paths.root, ignore_errors=True)
        raise Exhausted("no room for the VM's files: the disk is full or not writable", detail=repr(error)) from error
    except BaseException:
        shutil.rmtree(paths.root, ignore_errors=True)
        raise


def _house_keys(host: Host) -> list[str]:
    """The key by which Hatch itself, and `hatchvm ssh`, may log in to the guest."""
    try:
        return [host.paths.house_key.with_suffix(".pub").read_text().strip()]
    except FileNotFoundError:
        return []


def ensure_ours(host: Host, paths: VMPaths) -> None:
    """Raises Unsupported if the VM's disk has another driver's format."""
    maker = maker_of(paths)
    if maker not in (None, host.driver.name):
        raise Unsupported(
            f"the VM's disk was made by {maker}; start Hatch with HATCH_VMM={maker}, or copy its data to a new VM"
        )


def maker_of(paths: VMPaths) -> str | None:
    """The driver whose format the VM's disk has, None without a disk. Its content is not asked: a guest wrote it.

    Up to 0.1 there was one driver only, which did not say so.
    """
    try:
        return paths.made_by.read_text()
    except FileNotFoundError:
        return "qemu" if paths.disk.exists() or old_disk(paths).exists() else None


def old_disk(paths: VMPaths) -> Path:
    """Where disks were up to 0.1."""
    return paths.root / "disk.qcow2"


def ensure_room(paths: VMPaths, mem_mib: int) -> None:
    """A guest that touches memory for which the disk has no room is killed by the kernel: refuse to start it instead.

    Raises Exhausted. What other guests have not touched yet is not counted.
    """
    wanted = mem_mib * MIB - allocated_bytes(paths.memory)
    free = shutil.disk_usage(paths.root).free
    if wanted > free:
        raise Exhausted(
            f"the disk has {format_bytes(free)} free; the VM's memory may need {format_bytes(wanted)}: make room"
        )


async def boot(host: Host, vm: VM, image: Image) -> Handle:
    """Start the guest from its disk with fresh memory. Its parts are made now if a killed daemon left some unmade."""
    paths = host.paths.vm(vm.id)
    if ledger.source(paths) is not None:
        await lazy.complete(paths, host.snapshots(), host.pagers)
    if not paths.seed.exists() or (image.boot.rootfs is not None and not paths.disk.exists()):
        await prepare(host, vm, image, vm.spec.user_data)
    ensure_ours(host, paths)
    ensure_room(paths, vm.spec.mem_mib)
    forget_memory(paths)
    async with plugged_in(host, vm) as plug:
        return await host.driver.launch(plan(host, vm, image, plug=plug))


async def halt(handle: Handle, *, timeout_s: float) -> None:
    """Ask the guest to shut down; end the VMM if it has not by then. Returns when the process is gone."""
    try:
        async with asyncio.timeout(timeout_s):
            if not await handle.running():
                await handle.resume()
            await handle.power_button()
            await handle.wait()
    except (TimeoutError, HatchError):
        await let_go(handle)


def forget_memory(paths: VMPaths) -> None:
    """Drop what a suspend saved; the disk stays."""
    pair.spend(paths)
    changed.forget(paths)
    paths.state.unlink(missing_ok=True)
    paths.memory.unlink(missing_ok=True)
    paths.order.unlink(missing_ok=True)
