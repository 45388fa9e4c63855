"""Bind mounts for a jail, by mount(2). Everything raises OSError."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _PRIVATE = 1, 2, 4, 8, 32, 4096, 1 << 18
_DETACH, _NOFOLLOW = 2, 8
_libc: Final = ctypes.CDLL(None, use_errno=True)


def set_apart(folder: Path) -> None:
    """Mount a folder over itself, such that what is unmounted there stays mounted in copies of it.

    A host's mounts are shared, as a rule, and what a jailer copies from shared ones follows them.
    """
    _mount(folder, folder, _BIND)
    try:
        _mount(None, folder, _PRIVATE)
    except OSError:
        detach(folder)
        raise


def bind(source: Path, target: Path, *, writable: bool) -> None:
    """Mount a file over another. Nothing in it is a program or a device."""
    _mount(source, target, _BIND)
    _mount(None, target, _REMOUNT | _BIND | _NOSUID | _NODEV | _NOEXEC | (0 if writable else _RDONLY))


def detach(point: Path) -> bool:
    """Unmount what is on `point`, and all that is mounted in it, used or not. False if there was nothing."""
    if _libc.umount2(os.fsencode(point), _DETACH | _NOFOLLOW) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOENT):
        return False
    raise OSError(number, os.strerror(number), str(point))


def _mount(source: Path | None, target: Path, flags: int) -> None:
    what = os.fsencode(source) if source is not None else None
    if _libc.mount(what, os.fsencode(target), None, ctypes.c_ulong(flags), None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))
