"""One live QEMU: see `ports.vmm.Handle` for what each method promises."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from functools import partial
from typing import Any, Final

from hatchvm.base import sockets
from hatchvm.base.errors import Exhausted, HatchError, Internal, Unavailable
from hatchvm.base.paths import VMPaths
from hatchvm.base.process import Process
from hatchvm.ports.vmm import Exit, PutRight
from hatchvm.vmm import guest_agent
from hatchvm.vmm.live import Live, crashed
from hatchvm.vmm.qemu.cmdline import AGENT
from hatchvm.vmm.qemu.qmp import QMP
from hatchvm.vmm.qemu.reach import Reach

_QUIT_S: Final = 10.0
_CAPTURE_S: Final = 60.0
_FINAL_LOOK_S: Final = 0.0005
#: RAM stays in its file (`x-ignore-shared`), completion comes as an event instead of by polling.
CAPABILITIES: Final = [{"capability": "x-ignore-shared", "state": True}, {"capability": "events", "state": True}]


class QEMU(Live):
    """A `Handle`."""

    def __init__(self, process: Process, paths: VMPaths, qmp: QMP, reach: Reach | None) -> None:
        super().__init__(process, paths.root.name)
        self._qmp = qmp
        self._reach = reach
        self._paths = paths

    @property
    def version(self) -> str:
        return self._qmp.version

    @property
    def accepted(self) -> frozenset[int]:
        return self._reach.accepted if self._reach else frozenset()

    async def pause(self) -> None:
        await self._qmp.run("stop")

    async def resume(self) -> None:
        await self._qmp.run("cont")

    async def running(self) -> bool:
        return bool((await self._qmp.run("query-status"))["running"])

    async def put_right(self, *, again: bool, timeout_s: float) -> PutRight:
        ports = await self._qmp.run("query-chardev")
        if not any(port["label"] == AGENT and port["frontend-open"] for port in ports):
            return guest_agent.nothing("no qemu-guest-agent runs in the guest", again=again)
        dial = partial(sockets.connect, self._paths.agent)
        return await guest_agent.put_right(dial, self._paths.root.name, again=again, timeout_s=timeout_s)

    async def power_button(self) -> None:
        await self._qmp.run("system_powerdown")

    async def capture(self) -> None:
        target = self._paths.state.with_suffix(".new")
        fd = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            await self._qmp.pass_fd(fd, "state")
        finally:
            os.close(fd)
        ended = self._qmp.event(_migration_ended)
        await self._qmp.run("migrate", uri="fd:state")
        try:
            async with asyncio.timeout(_CAPTURE_S):
                status = (await ended)["data"]["status"]
                await self._finalized()
        except TimeoutError as error:
            await self._qmp.run("migrate_cancel")
            raise Internal("the VMM took too long to save its state") from error
        if status != "completed":
            raise await self._why_not_saved()
        target.replace(self._paths.state)

    async def _finalized(self) -> None:
        """QEMU announces the end of a migration a moment before its vCPUs may run again; until then `cont` fails."""
        while (await self._qmp.run("query-status"))["status"] == "finish-migrate":  # noqa: ASYNC110 - it sends no event
            await asyncio.sleep(_FINAL_LOOK_S)

    async def quit(self) -> None:
        self._asked = True
        with contextlib.suppress(Unavailable):  # it may end before it answers
            await self._qmp.run("quit")
        try:
            async with asyncio.timeout(_QUIT_S):
                await asyncio.shield(self._exit)
        except TimeoutError:
            await self.kill()

    async def dial(self, port: int, *, patient_until: float, deadline: float) -> socket.socket:
        if self._reach is None:
            raise Unavailable("vm has no guest IP")
        if self._exit.done():
            raise Unavailable("the VMM is gone")
        return await self._reach.dial(port, patient_until=patient_until, deadline=deadline)

    async def _over(self, code: int | None) -> Exit:
        self._qmp.close()
        shutdown = self._qmp.last_shutdown
        if shutdown and shutdown.get("guest"):
            return _ended_by_guest(str(shutdown.get("reason")))
        return crashed(code, self._process.log_tail())

    async def _why_not_saved(self) -> HatchError:
        info = await self._qmp.run("query-migrate")
        detail = str(info.get("error-desc", "")) or self._process.log_tail()
        if _full(self._paths):
            return Exhausted("the disk is full: the VM's state could not be saved; make room", detail=detail)
        return Internal("the VM's state could not be saved", detail=detail)


def _ended_by_guest(reason: str) -> Exit:
    """A kernel that crashed resets its machine (`panic=-1`) as a reboot does: the two cannot be told apart."""
    if reason == "guest-panic":
        return Exit(False, "the guest's kernel panicked; its console log tells more")
    if reason == "guest-reset":
        return Exit(True, "the guest rebooted or its kernel crashed; its console log tells more")
    return Exit(True, "the guest shut down")


def _migration_ended(message: dict[str, Any]) -> bool:
    return message["event"] == "MIGRATION" and message["data"]["status"] in ("completed", "failed", "cancelled")


def _full(paths: VMPaths) -> bool:
    space = os.statvfs(paths.root)
    return space.f_bavail * space.f_frsize < 1024 * 1024
