"""Network namespaces: by name, as `ip netns` keeps them, or by nothing but a descriptor.

What a thread does inside (open a socket or a TAP, start a process) belongs to the namespace for as long as it lives.
Entering takes microseconds and concerns the calling thread only, so nothing may be awaited inside.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn

from hatchvm.base.errors import Unavailable
from hatchvm.net.bridge import programs

_NAMED: Final = Path("/run/netns")
_CURRENT: Final = Path("/proc/thread-self/ns/net")
_CLONE_NEWNET: Final = 0x40000000
_libc: Final = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """`name` is None for the one that this process runs in."""

    def __init__(self, name: str | None) -> None:
        self.name = name

    def make(self) -> None:
        """Make it unless it is there. Raises Unavailable."""
        if self.name is None or self.is_there():
            return
        (_NAMED / self.name).unlink(missing_ok=True)  # left by somebody who was killed before it was mounted
        programs.run("ip", "netns", "add", self.name)

    def remove(self) -> None:
        """Remove it, if it has a name. What is in it ends with the last process inside."""
        if self.name is not None and (_NAMED / self.name).exists():
            programs.run("ip", "netns", "del", self.name)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """The calling thread is in the namespace. Raises Unavailable if there is none of that name."""
        if self.name is None:
            yield
            return
        with contextlib.ExitStack() as opened:
            try:
                opened.enter_context(entered(opened.enter_context(self.held())))
            except OSError as error:
                raise Unavailable(
                    f"the network namespace {self.name} cannot be entered; restart Hatch", detail=repr(error)
                ) from error
            yield

    @contextlib.contextmanager
    def held(self) -> Iterator[int]:
        """A descriptor of it, for a thread that is in no other. Raises OSError."""
        there = _open(_NAMED / self.name if self.name is not None else _CURRENT)
        try:
            yield there
        finally:
            os.close(there)

    def holds(self, pid: int) -> bool:
        """True if that process lives in this namespace."""
        mine = _NAMED / self.name if self.name is not None else Path("/proc/self/ns/net")
        try:
            return mine.stat().st_ino == Path(f"/proc/{pid}/ns/net").stat().st_ino
        except OSError:
            return False

    def set(self, setting: str, value: str) -> None:
        """Write a kernel setting of the namespace, from inside, like `ipv4/ip_forward`.

        One that the kernel does not have is skipped. Raises OSError.
        """
        path = Path("/proc/sys/net") / setting
        with contextlib.suppress(FileNotFoundError):
            if path.read_text().strip() != value:
                path.write_text(value)

    def is_there(self) -> bool:
        """False if there is none, or only its name. Raises Unavailable."""
        try:
            with self.inside():
                return True
        except Unavailable as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOENT, errno.EINVAL):
                return False
            raise


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """After the block the calling thread is in the namespace in which it was before. Raises OSError."""
    here = _open(_CURRENT)
    try:
        try:
            yield
        finally:
            _enter(here)
    finally:
        os.close(here)


@contextlib.contextmanager
def entered(namespace: int) -> Iterator[None]:
    """The calling thread is in the namespace of that descriptor. Raises OSError."""
    with restored():
        _enter(namespace)
        yield


def enter_new() -> int:
    """The calling thread is in a new namespace; a descriptor of it, with whose last copy it ends. Raises OSError."""
    if _libc.unshare(_CLONE_NEWNET) != 0:
        _fail()
    return _open(_CURRENT)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET) != 0:
        _fail()


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _fail() -> NoReturn:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))
