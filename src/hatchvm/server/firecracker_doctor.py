"""What the doctor says about Firecracker: whether VMs run in it, how to get one, what its host should not do."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from hatchvm.base.errors import HatchError
from hatchvm.domain.image import DEBIAN, TINY
from hatchvm.images import builtin
from hatchvm.server import vmm
from hatchvm.server.config import Config
from hatchvm.server.finding import Finding, of_error
from hatchvm.vmm.firecracker import probe
from hatchvm.vmm.firecracker.version import OLDEST, Installed

_SUBJECT: Final = "Firecracker"
_RELEASE: Final = f"v{OLDEST}-x86_64"
_URL: Final = (
    f"https://github.com/firecracker-microvm/firecracker/releases/download/v{OLDEST}/firecracker-{_RELEASE}.tgz"
)
#: As the project publishes its releases: tools/gh_release.py there.
INSTALL: Final = "\n".join(
    [
        f"get Firecracker {OLDEST} and its jailer:",
        f"curl -fLO {_URL}",
        f"curl -fLO {_URL}.sha256.txt",
        f"sha256sum -c firecracker-{_RELEASE}.tgz.sha256.txt",
        f"tar -xzf firecracker-{_RELEASE}.tgz",
        f"install -m 755 release-{_RELEASE}/firecracker-{_RELEASE} /usr/local/bin/firecracker",
        f"install -m 755 release-{_RELEASE}/jailer-{_RELEASE} /usr/local/bin/jailer",
        "then set HATCH_NETWORK=bridge",
    ]
)
_SWAPS: Final = Path("/proc/swaps")
_KSM: Final = Path("/sys/kernel/mm/ksm/run")
_SMT: Final = Path("/sys/devices/system/cpu/smt/active")
_POOL: Final = Path("/proc/sys/vm/nr_hugepages")


async def examine(config: Config, *, kvm: bool) -> list[Finding]:
    """`kvm`: a kernel starts under it here. Firecracker itself comes last, because its commands are for copying."""
    bad: Literal["ok", "fail"] = "fail" if config.vmm == "firecracker" else "ok"
    if config.vmm == "qemu":
        return [Finding("ok", _SUBJECT, "not wanted: HATCH_VMM=qemu")]
    try:
        found = await asyncio.to_thread(vmm.programs, vmm.settings_of(config))
    except HatchError as error:
        return [_missing(error, bad, kvm=kvm)]
    itself = await _itself(config, found[0], bad)
    wanted = config.vmm == "firecracker" or (config.network == "bridge" and itself.verdict == "ok" and not itself.mend)
    return [*(hints(config) if wanted else ()), itself]


def _missing(error: HatchError, bad: Literal["ok", "fail"], *, kvm: bool) -> Finding:
    found = str(error).removesuffix("; see `hatchvm doctor`")
    if not kvm:
        return Finding(bad, _SUBJECT, f"{found}; it needs KVM that starts a kernel, which is not here: QEMU is used")
    good = f"{found}; KVM works here, and the kernels of the images {TINY} and {DEBIAN} boot in it"
    return Finding(bad, _SUBJECT, good, INSTALL)


async def _itself(config: Config, found: Installed, bad: Literal["ok", "fail"]) -> Finding:
    image = builtin.find(TINY, config.cache_dir)
    try:
        probe.check()
        how = await vmm.box_of(vmm.settings_of(config), found).check(found.path)
        if image is None:
            unknown = f"{found.version}; whether a kernel starts in it is not known yet"
            return Finding(bad, _SUBJECT, unknown, "hatchvm image build tiny, then run the doctor again")
        if not await vmm.starts(config, found, image.boot.kernel):
            useless = f"{found.version}, but no kernel starts in it here (tried): QEMU is used"
            return Finding(bad, _SUBJECT, useless, "use a host whose KVM works, or a VM with nested virtualisation")
    except HatchError as error:
        return of_error(bad, _SUBJECT, error)
    if config.network != "bridge":
        return Finding("ok", _SUBJECT, f"{found.version}, {how}; a kernel starts in it", "set HATCH_NETWORK=bridge")
    return Finding("ok", _SUBJECT, f"{found.version}, {how}; a kernel starts in it")


def hints(config: Config) -> Iterator[Finding]:
    """What the project advises for hosts of many people's VMs (its docs/prod-host-setup.md)."""
    if len(_read(_SWAPS).splitlines()) > 1:
        yield Finding("warn", "swap", "guests' memory may end up on a disk, and stay there", "swapoff -a")
    if _read(_KSM).strip() not in ("", "0"):
        told = "the kernel merges equal pages: a guest can find out by timing what another one has"
        yield Finding("warn", "KSM", told, f"echo 0 >{_KSM}")
    if _read(_SMT).strip() == "1":
        told = "two guests may share a core, and what its caches leak"
        yield Finding("warn", "SMT", told, f"echo off >{_SMT.with_name('control')}")
    if config.huge_pages == "2M" and _read(_POOL).strip() == "0":
        told = "HATCH_HUGE_PAGES=2M, but the host has set none aside: no VM starts"
        yield Finding("warn", "huge pages", told, "sysctl -w vm.nr_hugepages=N, of 2 MiB each")


def _read(path: Path) -> str:
    """Empty if the host has no such thing."""
    try:
        return path.read_text()
    except OSError:
        return ""
