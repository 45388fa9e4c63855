"""One live Firecracker: see `ports.vmm.Handle` for what each method promises."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import Final

from hatchvm.base import tasks
from hatchvm.base.errors import Exhausted, HatchError, Internal, Unavailable
from hatchvm.base.files import write_atomic
from hatchvm.base.paths import VMPaths
from hatchvm.base.process import Process
from hatchvm.base.units import MIB
from hatchvm.ports.vmm import Exit, Pages, PutRight
from hatchvm.vmm import guest_agent
from hatchvm.vmm.firecracker import memory, requests, vsock
from hatchvm.vmm.firecracker.api import Api, Refused
from hatchvm.vmm.firecracker.box import Box
from hatchvm.vmm.firecracker.requests import Devices
from hatchvm.vmm.live import Live, crashed

#: Firecracker writes the memory to disk, and waits for the disk, before it answers.
_CAPTURE_S: Final = 600.0
#: Firecracker loads none that is larger. It may be a guest by now that writes it.
_MAX_STATE: Final = 10 * MIB
_LAST_LINES: Final = 3
#: What it says last when nobody killed it, whether the guest ended or it could not go on.
_ENDED_WELL: Final = "exit_code=0"


class Firecracker(Live):
    """A `Handle`."""

    def __init__(
        self, process: Process, paths: VMPaths, box: Box, api: Api, devices: Devices, *, version: str, clock: bool
    ) -> None:
        """`clock`: the guest's clock was put right when it was loaded."""
        super().__init__(process, paths.root.name)
        self.version = version
        self._paths = paths
        self._box = box
        self._api = api
        self._devices = devices
        self._clock = clock

    @property
    def accepted(self) -> frozenset[int]:
        """On a bridge guests answer for themselves: nothing need be remembered."""
        return frozenset()

    async def pause(self) -> None:
        await self._send(requests.PAUSE)

    async def resume(self) -> None:
        await self._send(requests.RESUME)

    async def running(self) -> bool:
        return (await self._api.send(requests.LOOK)).get("state") == "Running"

    async def capture(self) -> Pages | None:
        try:
            await self._api.send(requests.capture(self._devices), timeout_s=_CAPTURE_S)
        except Refused as error:
            if "No space left" in error.detail:
                raise Exhausted(
                    "the disk is full: the VM's memory could not be saved; make room", detail=error.detail
                ) from error
            raise Internal("the VM's state could not be saved", detail=error.detail) from error
        pages = await tasks.finish(asyncio.to_thread(self._join), name=f"join {self._paths.root.name}")
        return None if self._devices.huge_pages else pages

    def _join(self) -> Pages | None:
        """Of a guest that was booted here the memory file itself was written: see `driver`.

        The state is copied (some 10 KB): the process keeps the file that it writes to.
        """
        pages = memory.join(self._paths.memory, self._paths.changes) if self._paths.changes.exists() else None
        with self._paths.new_state.open("rb") as file:
            write_atomic(self._paths.state, file.read(_MAX_STATE), durable=False)
        return pages

    async def put_right(self, *, again: bool, timeout_s: float) -> PutRight:
        """A restored guest has its time from the VMM. Its random pool is its agent's to stir: the VMM gives it a new
        generation id, but kernels without that driver (Debian 12's is one) take no notice."""
        if self._clock and not again:
            return PutRight(done=("clock",))
        dial = partial(vsock.connect, self._paths.box / requests.VSOCK, guest_agent.VSOCK_PORT)
        agent = await guest_agent.put_right(dial, self._paths.root.name, again=again, timeout_s=timeout_s)
        if not self._clock:
            return agent
        undone = {what: why for what, why in agent.undone.items() if what != "clock"}
        return PutRight(done=("clock", *(what for what in agent.done if what != "clock")), undone=undone)

    async def power_button(self) -> None:
        await self._send(requests.POWER_BUTTON)

    async def quit(self) -> None:
        """What the guest wrote to its disk is with the host already, so there is nothing to ask the process for."""
        await self.kill()

    async def dial(self, port: int, *, patient_until: float, deadline: float) -> socket.socket:
        raise Unavailable("a Firecracker guest is reached over the bridge")

    async def _send(self, request: requests.Request) -> None:
        try:
            await self._api.send(request)
        except Refused as error:
            raise Internal("the VMM refused what it should do", detail=error.detail) from error

    async def _over(self, code: int | None) -> Exit:
        said = last_words(self._process)
        await self._api.close()
        await asyncio.to_thread(leave, self._box, self._paths)
        if code == 0 or (code is None and _ENDED_WELL in said):
            return Exit(True, "the guest shut down, rebooted, or its kernel crashed; its console log tells more")
        return crashed(code, said)


def last_words(process: Process) -> str:
    """The end of its log, without the requests that it was sent."""
    lines = [line for line in process.log_tail().split(" | ") if ":fc_api]" not in line]
    return " | ".join(lines[-_LAST_LINES:])


def leave(box: Box, paths: VMPaths) -> None:
    """After the end of a process. What stays is swept with the VM, or by its next start."""
    try:
        box.clear(paths)
    except HatchError:
        return
