"""A TAP for a VMM that opens it by name, as Firecracker does: ADR 13.

To be opened by name by a user without rights a TAP must be there before, so it must be persistent, and such a TAP is
leaked by whatever is killed too early. Here it cannot be: it is made in a namespace of its own, which has no name and
ends with the daemon's descriptor and the VMM, and the TAP with it. As soon as the VMM has opened it, it is persistent
no more; then it moves to the bridge.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Final, Literal, TypeVar

from hatchvm.base import tasks
from hatchvm.base.errors import Internal, Unavailable
from hatchvm.net.bridge import links
from hatchvm.net.bridge.namespace import Namespace, enter_new, entered, restored

T = TypeVar("T")

#: Brings a TAP to the bridge; None as long as there is another of its name.
Arrive = Callable[[], Awaitable[Literal[True] | None]]

_PIDFD_GETFD: Final = 438  # on every architecture; Python has no function for it
_libc: Final = ctypes.CDLL(None, use_errno=True)


class TapNest:
    """A `Nest`. `welcome` plugs in what arrives in the namespace of the bridge."""

    def __init__(self, tap: str, bridge: Namespace, welcome: Callable[[Arrive], Awaitable[None]]) -> None:
        self._tap = tap
        self._bridge = bridge
        self._welcome = welcome
        self._space: int | None = None

    async def lay(self, uid: int) -> None:
        await self.close()
        await self._in_thread(lambda: self._make(uid))

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        if self._space is None:
            raise Internal("a nest is entered that was never laid", detail=self._tap)
        with contextlib.ExitStack() as inside:
            with self._told():
                inside.enter_context(entered(self._space))
            yield

    async def plug(self, pid: int) -> None:
        await self._in_thread(lambda: self._end_with(pid))
        await self._welcome(lambda: self._in_thread(self._move))

    async def close(self) -> None:
        if self._space is not None:
            os.close(self._space)
            self._space = None

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """A cancellation waits for its end, because the namespace may be closed after it."""
        with self._told():
            return await tasks.finish(asyncio.to_thread(work), name=f"nest of {self._tap}")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Unavailable("the VM's network card could not be made; start it again", detail=repr(error)) from error

    def _make(self, uid: int) -> None:
        with restored():
            self._space = enter_new()
            links.lay_tap(self._tap, uid)

    def _end_with(self, pid: int) -> None:
        """Let the TAP end with the process that has opened it."""
        tap = _opened(pid, self._tap)
        if tap is None:
            raise Unavailable("the VMM has not opened the VM's network card; start the VM again", detail=self._tap)
        try:
            links.make_mortal(tap)
        finally:
            os.close(tap)

    def _move(self) -> Literal[True] | None:
        with self._bridge.held() as bridge, self.inside():
            was_moved = self._tap not in (name for _, name in socket.if_nameindex())
            return True if was_moved or links.send_off(self._tap, bridge) else None


def _opened(pid: int, tap: str) -> int | None:
    """A copy of the process's descriptor of that TAP, None if it has none. Raises OSError."""
    process = os.pidfd_open(pid)
    try:
        for info in Path(f"/proc/{pid}/fdinfo").iterdir():
            with contextlib.suppress(FileNotFoundError):  # one that it closed meanwhile
                if f"iff:\t{tap}\n" in info.read_text():
                    return _copied(process, int(info.name))
        return None
    finally:
        os.close(process)


def _copied(process: int, descriptor: int) -> int:
    fd: int = _libc.syscall(_PIDFD_GETFD, process, descriptor, 0)
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd
