"""The part of a `ports.vmm.Handle` that every VMM which is a process has in common: its end."""

from __future__ import annotations

import asyncio
import signal
from abc import ABC, abstractmethod
from typing import Final

from hatchvm.base import tasks
from hatchvm.base.process import Process
from hatchvm.ports.vmm import Exit

ASKED: Final = Exit(True, "the VMM was asked to end")


class Live(ABC):
    """Awaits the end of a process from the start. Knows whether it was asked for, so that a shutdown is no crash."""

    def __init__(self, process: Process, name: str) -> None:
        """`name`: of the VM, for whoever looks at tasks."""
        self._process = process
        self._asked = False
        self._exit = tasks.spawn(self._watch(), name=f"vmm {name}")

    @property
    def pid(self) -> int:
        return self._process.pid

    async def kill(self) -> None:
        if not self._exit.done():  # the pid of an ended one may be somebody else's by now
            self._asked = True
            self._process.signal(signal.SIGKILL)
        await asyncio.shield(self._exit)

    async def wait(self) -> Exit:
        return await asyncio.shield(self._exit)

    @abstractmethod
    async def _over(self, code: int | None) -> Exit:
        """Once the process has ended: let go of what was held of it, and say how nobody asked for that."""

    async def _watch(self) -> Exit:
        ended = await self._over(await self._process.wait())
        self._process.forget()
        return ASKED if self._asked else ended


def crashed(code: int | None, said: str) -> Exit:
    """`code`: as `Process.wait` tells it. `said`: its last words."""
    how = "" if code is None else f" (killed by signal {-code})" if code < 0 else f" (exit code {code})"
    return Exit(False, f"the VMM ended unexpectedly{how}" + (f": {said}" if said else ""))
