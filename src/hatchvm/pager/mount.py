"""Mounting a FUSE file system: by mount(2) as root, by `fusermount3` otherwise."""

from __future__ import annotations

import array
import ctypes
import os
import re
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from hatchvm.base.errors import Unsupported

_DEVICE: Final = "/dev/fuse"
_NOSUID: Final = 2
_NODEV: Final = 4
_DETACH: Final = 2
_HELPER: Final = "fusermount3"

_libc = ctypes.CDLL(None, use_errno=True)


def mount(point: Path) -> int:
    """Mount on the folder `point`; the descriptor over which requests come. Closing it leaves a dead mount behind.

    Raises Unsupported with what to do.
    """
    if os.geteuid() == 0:
        return _as_root(point)
    return _by_helper(point)


def unmount(point: Path) -> None:
    """Take away what is mounted on `point`, dead or alive; nothing there is success."""
    if not is_mounted(point):
        return
    if os.geteuid() == 0:
        _libc.umount2(os.fsencode(point), _DETACH)
    elif helper := shutil.which(_HELPER):
        subprocess.run([helper, "-u", "-z", "--", str(point)], check=False, capture_output=True)


def is_mounted(point: Path) -> bool:
    """True if a file system is mounted there. Asks the kernel's table: a dead mount answers no call at all."""
    return _device(point) is not None


def probe() -> str | None:
    """None if file systems can be mounted here (one was, and is gone again), else a sentence."""
    with tempfile.TemporaryDirectory(prefix="hatchvm-fuse-") as folder:
        try:
            os.close(mount(Path(folder)))
        except Unsupported as error:
            return str(error)
        unmount(Path(folder))
    return None


def ease_writeback(point: Path) -> None:
    """Let the guest dirty as much memory as on any file system, where root may say so.

    The kernel holds FUSE file systems to one per cent of what may be dirty, for fear of servers that never answer.
    """
    settings = Path(f"/sys/class/bdi/{_device(point)}")
    for name, value in (("strict_limit", "0"), ("max_ratio", "100")):
        try:
            (settings / name).write_text(value)
        except OSError:
            continue


def _as_root(point: Path) -> int:
    try:
        fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise Unsupported(f"{_DEVICE} cannot be used: {error.strerror}; load the fuse module") from error
    # A jailed VMM is another user. Nobody else gets here: the folder above lets only root in.
    options = f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other"
    if _libc.mount(b"hatchvm", os.fsencode(point), b"fuse.hatchvm", _NOSUID | _NODEV, options.encode()):
        number = ctypes.get_errno()
        os.close(fd)
        raise Unsupported(f"a FUSE file system cannot be mounted: {os.strerror(number)}")
    return fd


def _by_helper(point: Path) -> int:
    helper = shutil.which(_HELPER)
    if helper is None:
        raise Unsupported(
            f"a FUSE file system cannot be mounted: {_HELPER} is missing; install fuse3, or run Hatch as root"
        )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [helper, "-o", "fsname=hatchvm,subtype=hatchvm,nosuid,nodev", "--", str(point)],
            env={"PATH": os.environ.get("PATH", ""), "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            capture_output=True,
            check=False,
        )
        if done.returncode:
            detail = done.stderr.decode(errors="replace").strip().rpartition(": ")[2]
            raise Unsupported(f"a FUSE file system cannot be mounted: {detail}; let Hatch's user open {_DEVICE}")
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(array.array("i").itemsize))
        fd = int.from_bytes(ancillary[0][2][:4], "little")
    os.set_inheritable(fd, False)
    return fd


def _device(point: Path) -> str | None:
    """`major:minor` of what is mounted on `point`, by the kernel's table."""
    wanted = str(point.parent.resolve() / point.name)
    lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    found = [fields[2] for line in lines if _unescaped((fields := line.split(" "))[4]) == wanted]
    return found[-1] if found else None


def _unescaped(field: str) -> str:
    """mountinfo writes blanks and backslashes as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
