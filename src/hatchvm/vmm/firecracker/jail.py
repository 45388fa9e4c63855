"""A jail for each Firecracker, made by Firecracker's own jailer.

What a guest that has taken over its Firecracker can reach:

- Files: its box, which is its whole file system. Its own disk, memory and seed it could change anyway. What it shares
  with others (the image) belongs to root and is not writable. There is no /proc and no program but Firecracker.
- Users: it has a number that no other VM and no account of the host has, no capability, and no file of that user
  outside its box. It sees pids, but may signal and trace none but its own.
- Network: the network namespace it was started in, which holds its TAP or nothing at all.
- Devices: /dev/kvm, its TAP through /dev/net/tun, /dev/urandom, /dev/userfaultfd. System calls: Firecracker's filter.
- Processor, memory and processes: what its cgroup allows. Disk space it can fill, as it can by writing to its disk.
- The host: it owns the folder of its box, so every name there may be its lie. Hatch opens the VM's files by their own
  names outside; inside it connects to sockets, and believes no answer more than it believes a guest.

The jailer is passed neither `--new-pid-ns` nor `--daemonize`: with either it forks, and the pid that Hatch started
would not be the VMM's. The namespace of the network is the one it is started in.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hatchvm.base.errors import Unsupported
from hatchvm.base.paths import VMPaths
from hatchvm.vmm.firecracker import mounts, uids
from hatchvm.vmm.firecracker.box import Entry, Limits, found, told, whole
from hatchvm.vmm.firecracker.version import parse, say

#: What link(2) says where a hard link is not possible: another file system, one without links, a file that forbids it.
_NO_LINK: Final = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})
_MOUNTS: Final = Path("/proc/mounts")
_CONTROLLERS: Final = frozenset({"cpu", "memory", "pids"})
#: Open files: one for each of vsock's connections, of which Firecracker has 1023 at most, and some dozens beside.
_OPEN_FILES: Final = 2048
_PERIOD_US: Final = 100_000
_OFF: Final = "or set HATCH_JAIL=off for development"


@dataclass(frozen=True, slots=True, kw_only=True)
class Jail:
    """A `Box`. `parent`: the cgroup of all VMs, under the root of cgroup v2; None: no limits, no cgroups at all."""

    jailer: Path
    uids: range = uids.RANGE
    parent: str | None = "hatchvm"

    async def check(self, binary: Path) -> str:
        if os.geteuid() != 0:
            raise Unsupported(f"a jail needs root; run Hatch as root, {_OFF}")
        mine = parse(await asyncio.to_thread(say, self.jailer, "--version"), "Jailer")
        its = parse(await asyncio.to_thread(say, binary, "--version"), "Firecracker")
        if mine is None or mine != its:
            raise Unsupported(f"{self.jailer} is version {mine}, Firecracker is {its}; install both from one release")
        if self.parent is None:
            return "jailed, without limits"
        top = _hierarchy()
        missing = _CONTROLLERS - (_controllers(top) if top is not None else frozenset())
        if missing:
            lacking = ", ".join(sorted(missing))
            raise Unsupported(
                f"a jail needs cgroup v2 with {lacking}; boot the host with systemd.unified_cgroup_hierarchy=1, {_OFF}"
            )
        return f"jailed: users {self.uids.start} to {self.uids.stop - 1}, cgroup {self.parent}"

    def uid(self, paths: VMPaths) -> int:
        with told():
            return uids.claim(paths, self.uids)

    def furnish(self, paths: VMPaths, binary: Path, entries: Sequence[Entry]) -> None:
        self.clear(paths)
        uid = self.uid(paths)
        with whole(self, paths):
            root = paths.jail / binary.resolve().name / paths.root.name / "root"
            paths.jail.mkdir(mode=0o700)
            root.mkdir(mode=0o700, parents=True)
            paths.box.symlink_to(root.relative_to(paths.root))
            elsewhere = [entry for entry in entries if not _linked(entry, root, uid)]
            if elsewhere:  # after the last link, for none leads into another mount
                mounts.set_apart(root)
            for entry in elsewhere:
                (root / entry.name).touch(mode=0o600)
                mounts.bind(entry.path, root / entry.name, writable=entry.writable)

    def command(self, paths: VMPaths, binary: Path, args: Sequence[str], limits: Limits) -> tuple[list[str], Path]:
        uid = str(self.uid(paths))
        argv = [str(self.jailer.resolve()), "--id", paths.root.name, "--exec-file", str(binary.resolve())]
        argv += ["--uid", uid, "--gid", uid, "--chroot-base-dir", str(paths.jail.resolve())]
        if self.parent is not None:
            argv += ["--cgroup-version", "2", "--parent-cgroup", self.parent]
            for name, value in cgroup(limits).items():
                argv += ["--cgroup", f"{name}={value}"]
        return [*argv, "--resource-limit", f"no-file={_OPEN_FILES}", "--", *args], paths.box.resolve()

    def settle(self, paths: VMPaths) -> None:
        """The jailer has made copies of the mounts for the process, in a namespace that the host does not see."""
        with told():
            for root in paths.jail.glob("*/*/root"):
                while mounts.detach(root):
                    pass

    def clear(self, paths: VMPaths) -> None:
        self.settle(paths)
        with told():
            if paths.box.is_dir() and not paths.box.is_symlink():  # the VM ran without a jail before
                shutil.rmtree(paths.box)
            paths.box.unlink(missing_ok=True)
            if paths.jail.exists():
                shutil.rmtree(paths.jail)
            if self.parent is not None and (top := _hierarchy()) is not None:
                with contextlib.suppress(FileNotFoundError):
                    (top / self.parent / paths.root.name).rmdir()


def cgroup(limits: Limits) -> dict[str, str]:
    """What a VM may use, as files of its cgroup.

    An honest Firecracker never meets them. It has a thread for each vCPU, one for all devices, one for the API, and the
    kernel may add some for KVM. Beside the guest's memory there are Firecracker's own (5 MiB, by its specification),
    both page tables of the guest's memory (1/256 of it) and socket buffers; and the page cache of its files needs some
    room in which to be written back.
    """
    mem_mib = limits.mem_mib + limits.mem_mib // 64 + 64
    return {
        "cpu.max": f"{(limits.vcpu_count + 1) * _PERIOD_US} {_PERIOD_US}",
        "memory.max": str(mem_mib << 20),
        "pids.max": str(limits.vcpu_count + 16),
    }


def _linked(entry: Entry, root: Path, uid: int) -> bool:
    """Put the file in by hard link, which shares its owner. False if it can only be mounted."""
    about = found(entry)
    path = entry.path.resolve()
    if entry.writable:
        os.chown(path, uid, uid)
    elif not about.st_mode & stat.S_IROTH or about.st_mode & stat.S_IWOTH:
        raise Unsupported(
            f"the VM's {entry.name} must be readable by everyone and writable by its owner only: chmod 644",
            detail=str(path),
        )
    try:
        os.link(path, root / entry.name)
    except OSError as error:
        if error.errno in _NO_LINK:
            return False
        raise
    return True


def _hierarchy() -> Path | None:
    """Where cgroup v2 is mounted: the first place, as the jailer sees it."""
    fields = (line.split(" ") for line in _MOUNTS.read_text().splitlines())
    return next((Path(field[1]) for field in fields if field[2] == "cgroup2"), None)


def _controllers(top: Path) -> frozenset[str]:
    return frozenset((top / "cgroup.controllers").read_text().split())
