"""Which VMM the daemon drives: decided once, before anything is opened, by what is installed and what really runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from hatchvm.base import process
from hatchvm.base.errors import Conflict, HatchError, Unsupported
from hatchvm.base.paths import DataPaths
from hatchvm.domain.image import TINY
from hatchvm.images import builtin
from hatchvm.node.launch import maker_of
from hatchvm.ports.vmm import Driver
from hatchvm.server.config import Config, blaming
from hatchvm.telemetry import logs
from hatchvm.vmm.firecracker import probe
from hatchvm.vmm.firecracker.box import Bare, Box
from hatchvm.vmm.firecracker.driver import FirecrackerDriver
from hatchvm.vmm.firecracker.jail import Jail
from hatchvm.vmm.firecracker.requests import Devices
from hatchvm.vmm.firecracker.settings import Settings
from hatchvm.vmm.firecracker.version import Installed, installed
from hatchvm.vmm.qemu.accel import Accelerator
from hatchvm.vmm.qemu.driver import QEMUDriver

_log = structlog.get_logger()

#: Said to whoever starts a daemon whose VMs nothing holds.
_NOT_CONFINED: Final = (
    "HATCH_JAIL=off: VMs are not confined. A guest that breaks out of its Firecracker has this daemon's rights on this "
    "host. For development only"
)


@dataclass(frozen=True, slots=True)
class Chosen:
    """`why_not`: what keeps `auto` from Firecracker, a sentence; empty if it was not asked for, or is there."""

    driver: Driver
    why_not: str = ""


async def choose(config: Config, say: Callable[[str], None]) -> Chosen:
    """The VMM of this host. May build the image `tiny`, whose kernel is tried; `say` is told of it.

    Raises Unsupported if Firecracker was demanded and cannot be had, Conflict while VMs run in another VMM: it could
    only end them.
    """
    chosen = await _choose(config, say)
    other = await asyncio.to_thread(_runs_in_another, DataPaths(config.data_dir), chosen.driver.name)
    if other is not None:
        raise Conflict(f"HATCH_VMM: VMs of this data directory run in {other}; start Hatch with HATCH_VMM={other}")
    return chosen


async def _choose(config: Config, say: Callable[[str], None]) -> Chosen:
    if config.vmm == "qemu":
        return Chosen(qemu(config))
    if config.vmm == "firecracker":
        with blaming("HATCH_VMM=firecracker"):
            return Chosen(await _firecracker(config, say))
    try:
        return Chosen(await _firecracker(config, say))
    except HatchError as error:
        return Chosen(qemu(config), error.message)


def qemu(config: Config) -> QEMUDriver:
    """The driver that runs anywhere."""
    return QEMUDriver(Accelerator(config.accel, memory=config.cache_dir / "accel.json", binary=config.qemu_bin))


def settings_of(config: Config) -> Settings:
    """Firecracker's part of the configuration."""
    devices = Devices(disk_rate=config.disk_rate, net_rate=config.net_rate, huge_pages=config.huge_pages == "2M")
    return Settings(
        binary=config.firecracker_bin,
        older=config.firecracker_bins,
        jailer=config.jailer_bin,
        jail=config.jail == "on",
        uids=config.jail_uids,
        devices=devices,
    )


def programs(settings: Settings) -> list[Installed]:
    """The Firecracker that starts VMs, and those that are kept for old snapshots. Blocks. Raises Unsupported."""
    with blaming("HATCH_FIRECRACKER_BIN"):
        found = [installed(settings.binary)]
    with blaming("HATCH_FIRECRACKER_BINS"):
        return found + [installed(binary) for binary in settings.older]


def box_of(settings: Settings, firecracker: Installed) -> Box:
    """What VMs see of the host. Raises Unsupported."""
    if not settings.jail:
        return Bare()
    with blaming("HATCH_JAILER_BIN"):
        return Jail(jailer=settings.jailer_of(firecracker.path), uids=settings.uids)


async def starts(config: Config, firecracker: Installed, kernel: Path) -> bool:
    """True if this kernel starts in this Firecracker here."""
    return await probe.works(firecracker, kernel, config.cache_dir / "firecracker.json")


async def _firecracker(config: Config, say: Callable[[str], None]) -> FirecrackerDriver:
    if config.network != "bridge":
        raise Unsupported("Firecracker needs HATCH_NETWORK=bridge, which needs root")
    if config.accel == "tcg":
        raise Unsupported("Firecracker needs KVM, and HATCH_ACCEL=tcg is set")
    settings = settings_of(config)
    found = await asyncio.to_thread(programs, settings)
    if config.vmm == "auto" and await asyncio.to_thread(_has_vms_of_qemu, DataPaths(config.data_dir)):
        raise Unsupported("VMs of this data directory were made by QEMU; they cannot run in Firecracker")
    box = box_of(settings, found[0])
    await box.check(found[0].path)
    probe.check()
    kernel = await _kernel(config, say)
    if not await starts(config, found[0], kernel):
        raise Unsupported("no kernel starts under KVM here; HATCH_VMM=qemu works anywhere")
    if not settings.jail:
        _log.warning(logs.NOT_CONFINED)
        say(f"Take care: {_NOT_CONFINED}")
    return FirecrackerDriver(found, box, settings.devices)


async def _kernel(config: Config, say: Callable[[str], None]) -> Path:
    """One to try. The image `tiny` is made at the first start anyway, unless there is another default image."""
    image = builtin.find(TINY, config.cache_dir)
    if image is None and config.default_kernel_path:
        return Path(config.default_kernel_path)
    return (image or await builtin.build(TINY, config.cache_dir, say)).boot.kernel


def _has_vms_of_qemu(paths: DataPaths) -> bool:
    return any(maker_of(paths.vm(folder.name)) == "qemu" for folder in paths.vms.glob("vm-*"))


def _runs_in_another(paths: DataPaths, mine: str) -> str | None:
    """The VMM of a VM that runs in another than `mine`, if there is one."""
    for folder in paths.vms.glob("vm-*"):
        vm = paths.vm(folder.name)
        maker = maker_of(vm)
        if maker not in (mine, None) and process.recorded(vm.process) is not None:
            return maker
    return None
