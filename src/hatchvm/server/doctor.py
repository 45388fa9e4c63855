"""What this host can do, found by trying: what `hatchvm doctor` prints."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from hatchvm.base.clock import SystemClock
from hatchvm.base.errors import HatchError
from hatchvm.base.units import format_bytes
from hatchvm.domain.image import TINY
from hatchvm.edge.http.tls.certificates import Pair, load
from hatchvm.images import builtin
from hatchvm.net.bridge.bridge import BridgeNetwork
from hatchvm.net.bridge.settings import Bridge
from hatchvm.pager.mount import probe
from hatchvm.server import firecracker_doctor
from hatchvm.server.config import Config
from hatchvm.server.finding import Finding, of_error
from hatchvm.server.wiring import bridge_of
from hatchvm.vmm.qemu.accel import Accelerator
from hatchvm.vmm.qemu.reach import ephemeral_ports_overlap

_FICLONE: Final = 0x40049409
_LITTLE_SPACE: Final = 5 * 1024**3


async def examine(config: Config) -> list[Finding]:
    """Everything, most important first. Changes nothing but the remembered result of the KVM try."""
    kvm = await _kvm(config)
    findings = [
        await _qemu(config),
        _program(config, "qemu-img", "qemu-utils", "disks of VMs"),
        kvm,
        *_network(),
        await _bridge(config),
        _lazy(config),
        *certificates(config),
        *_disk(config),
        _image(config),
    ]
    return findings + await firecracker_doctor.examine(config, kvm=kvm.verdict == "ok")


async def _qemu(config: Config) -> Finding:
    try:
        machine = await Accelerator("tcg", memory=Path(os.devnull), binary=config.qemu_bin).machine(None)
    except HatchError as error:
        mend = "apt-get install --no-install-recommends qemu-system-x86 qemu-utils"
        return Finding(_without_qemu(config), "QEMU", str(error), mend)
    return Finding("ok", "QEMU", machine.version)


async def _kvm(config: Config) -> Finding:
    slow = "VMs run under software emulation: they work, several times slower"
    if not Path("/dev/kvm").exists():
        return Finding(
            "warn", "KVM", f"no /dev/kvm; {slow}", "use a host (or a VM with nested virtualisation) that has it"
        )
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Finding("warn", "KVM", f"/dev/kvm is not yours; {slow}", "usermod -aG kvm $USER, then log in again")
    image = builtin.find(TINY, config.cache_dir)
    if image is None:
        return Finding(
            "warn",
            "KVM",
            "/dev/kvm is there; whether a kernel starts under it is not known yet",
            "hatchvm image build tiny, then run the doctor again",
        )
    try:
        machine = await Accelerator("auto", memory=config.cache_dir / "accel.json", binary=config.qemu_bin).machine(
            image.boot
        )
    except HatchError as error:
        return Finding("warn", "KVM", f"not tried: {error}")
    if machine.accel == "kvm":
        return Finding("ok", "KVM", "a kernel starts under it")
    return Finding("warn", "KVM", f"/dev/kvm is there, but no kernel starts under it (tried); {slow}")


def _network() -> Iterator[Finding]:
    yield Finding("ok", "user networking", "works without root; VMs are reached through loopback ports")
    if ephemeral_ports_overlap():
        yield Finding(
            "warn",
            "loopback ports",
            "outgoing connections may take ports that VMs use (26001-32767); Hatch then takes others",
            "sysctl -w net.ipv4.ip_local_port_range='32768 60999'",
        )


async def _bridge(config: Config) -> Finding:
    wanted = bridge_of(config)
    bridge = wanted or BridgeNetwork(Bridge(name=config.bridge_name, cidr=config.bridge_cidr))
    try:
        found = await bridge.check()
    except HatchError as error:
        told = of_error("fail" if wanted else "ok", "bridge networking", error)
        return told if wanted else replace(told, found=f"not possible: {told.found}")
    return Finding("ok", "bridge networking", found if wanted else "possible here: HATCH_NETWORK=bridge")


def _lazy(config: Config) -> Finding:
    if config.lazy_restore == "never":
        return Finding("ok", "lazy restore", "switched off: HATCH_LAZY_RESTORE=never")
    trouble = probe()
    if trouble is None:
        return Finding("ok", "lazy restore", "a VM woken from the object store runs before all of it is here")
    slow = "a VM woken from the object store is fetched whole before it runs"
    return Finding("warn", "lazy restore", f"{trouble.partition('; ')[0]}; {slow}", trouble.partition("; ")[2])


def certificates(config: Config) -> Iterator[Finding]:
    """Those of the TLS port: whether they can serve, and for how long yet."""
    now = SystemClock().now()
    for paths in zip(config.tls_cert, config.tls_key, strict=True):
        try:
            certificate = load(Pair(*paths))
        except HatchError as error:
            yield Finding("fail", "TLS", f"{error}; the daemon does not start", "see HATCH_TLS_CERT and HATCH_TLS_KEY")
            continue
        caution = certificate.caution(now)
        good = f"{paths[0]} for {', '.join(certificate.names) or 'no name'}, until {certificate.expires_at:%Y-%m-%d}"
        yield Finding("warn" if caution else "ok", "TLS", caution or good)


def _disk(config: Config) -> Iterator[Finding]:
    folder = config.data_dir.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    verdict: Literal["ok", "warn"] = "ok" if free >= _LITTLE_SPACE else "warn"
    yield Finding(
        verdict,
        "disk space",
        f"{format_bytes(free)} free for {config.data_dir}",
        "" if verdict == "ok" else "make room",
    )
    if _reflink(folder):
        yield Finding("ok", "reflink", "copies share their blocks")
    else:
        yield Finding(
            "ok", "reflink", "not on this file system: copies of images are real ones (XFS and Btrfs have it)"
        )


def _reflink(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as source, tempfile.TemporaryFile(dir=folder) as target:
            source.write(b"x" * 4096)
            source.flush()
            fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
    except OSError:
        return False
    return True


def _image(config: Config) -> Finding:
    if builtin.find(TINY, config.cache_dir) is not None:
        return Finding("ok", f"image {TINY}", f"built, in {config.cache_dir}")
    missing = [name for name in ("apt-get", "dpkg-deb", "mke2fs") if not _which(name)]
    if missing:
        return Finding(
            "warn",
            f"image {TINY}",
            f"cannot be built: {', '.join(missing)} missing",
            "build it on Debian, or register a kernel and a root disk: hatchvm image create",
        )
    return Finding("ok", f"image {TINY}", "not built yet; the first start does it, or: hatchvm image build tiny")


def _without_qemu(config: Config) -> Literal["warn", "fail"]:
    """Firecracker needs nothing of it, but for images in its format."""
    return "warn" if config.vmm == "firecracker" else "fail"


def _program(config: Config, name: str, package: str, purpose: str) -> Finding:
    path = _which(name)
    if path is None:
        return Finding(_without_qemu(config), name, f"missing; needed for {purpose}", f"apt-get install {package}")
    return Finding("ok", name, path)


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def examine_now(config: Config) -> list[Finding]:
    """`examine`, for callers without an event loop."""
    return asyncio.run(examine(config))
