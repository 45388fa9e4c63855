"""Firecracker's driver with the bridge that its guests need, as one `Driver` whose handles can be dialled.

In the daemon the node brings the two together; a conformance suite for drivers has no node.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from hatchvm.base.errors import Unavailable
from hatchvm.base.paths import VMPaths
from hatchvm.base.process import start_ticks
from hatchvm.domain.image import DiskFormat
from hatchvm.domain.snapshot import Stamp
from hatchvm.net.bridge.bridge import BridgeNetwork
from hatchvm.ports.network import Seat
from hatchvm.ports.vmm import Handle, LaunchPlan
from hatchvm.vmm.firecracker.driver import FirecrackerDriver


class Reached:
    """A `Handle` that dials over the bridge; all else is done by the driver's own."""

    def __init__(self, handle: Handle, network: BridgeNetwork, seat: Seat) -> None:
        self._handle = handle
        self._network = network
        self._seat = seat

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handle, name)

    async def dial(self, port: int, *, patient_until: float, deadline: float) -> socket.socket:
        if start_ticks(self._handle.pid) is None:
            raise Unavailable("the VMM is gone")
        return await self._network.dial(self._seat, self._handle, port, patient_until=patient_until, deadline=deadline)


class BridgedDriver:
    """A `Driver`. Plans name a TAP and an address; it makes a nest for each start."""

    name = "firecracker"
    taps: Literal["fd", "name"] = "name"
    lazy_memory: Literal["file", "faults"] = "faults"

    def __init__(self, driver: FirecrackerDriver, network: BridgeNetwork) -> None:
        self._driver = driver
        self.memory_by_faults = driver.memory_by_faults
        self._network = network

    async def check(self) -> str:
        return await self._driver.check()

    async def stamp(self, plan: LaunchPlan, wanted: Stamp | None = None) -> Stamp:
        return await self._driver.stamp(plan, wanted)

    async def create_disk(self, base: Path | None, base_format: DiskFormat, disk: Path) -> None:
        await self._driver.create_disk(base, base_format, disk)

    async def launch(self, plan: LaunchPlan) -> Handle:
        return await self._nested(plan, self._driver.launch)

    async def restore(self, plan: LaunchPlan) -> Handle:
        return await self._nested(plan, self._driver.restore)

    async def adopt(self, plan: LaunchPlan) -> Handle | None:
        handle = await self._driver.adopt(plan)
        return None if handle is None else self._reached(handle, plan)

    async def kill_stray(self, paths: VMPaths) -> bool:
        return await self._driver.kill_stray(paths)

    async def _nested(self, plan: LaunchPlan, start: Callable[[LaunchPlan], Awaitable[Handle]]) -> Handle:
        assert plan.net is not None
        nest = await self._network.nest(_seat(plan))
        try:
            handle = await start(replace(plan, net=replace(plan.net, nest=nest)))
        finally:
            await nest.close()
        return self._reached(handle, plan)

    def _reached(self, handle: Handle, plan: LaunchPlan) -> Handle:
        reached: Handle = Reached(handle, self._network, _seat(plan))
        return reached


def _seat(plan: LaunchPlan) -> Seat:
    assert plan.net is not None
    return Seat(vm_id=plan.vm_id, guest_ip=plan.net.guest_ip, guest_mac=plan.net.guest_mac, tap_name=plan.net.tap_name)
