"""Hatch's proxy in a process of its own: the real `ProxyServer` over the real `HouseGate`, before guests on loopback.

Only what lies behind the gate's `dial` is left out: a guest is a loopback port.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import signal
import socket
from pathlib import Path
from typing import Final, cast

from bench.proxy.layout import BASE, Layout
from hatchvm.base import ids
from hatchvm.base.clock import SystemClock
from hatchvm.base.errors import Upstream
from hatchvm.control.context import Context
from hatchvm.control.events import Bus
from hatchvm.control.gate import HouseGate
from hatchvm.control.owner import Owners
from hatchvm.control.table import RouteTable
from hatchvm.domain.lifecycle import State
from hatchvm.domain.route import Route
from hatchvm.domain.vm import VM, VMSpec
from hatchvm.edge.http.server import ProxyServer
from hatchvm.ports.node import Node
from hatchvm.server.main import loop_factory
from hatchvm.store.store import SqlStore
from hatchvm.testing.world import SETTINGS

_GUEST_PORT: Final = 80


class LoopbackNode:
    """Dials loopback ports. It does nothing else: no VM changes its state here."""

    def __init__(self) -> None:
        self.ports: dict[str, int] = {}

    async def dial(self, vm: VM, port: int, *, patient_until: float, deadline: float) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.ports[vm.id]))
        except OSError as error:
            sock.close()
            raise Upstream("upstream refused connection", detail=str(error)) from error
        return sock


def house(layout: Layout, data: Path) -> Context:
    """A control plane with the layout's routes; its VMs run."""
    clock, node = SystemClock(), LoopbackNode()
    ctx = Context(
        store=SqlStore(f"sqlite:///{data}/hatch.db"),  # never opened: a request does not come near it
        node=cast(Node, node),
        clock=clock,
        bus=Bus(clock),
        owners=Owners(),
        routes=RouteTable(),
        settings=SETTINGS,
        port_is_free=lambda port: True,
    )
    now = clock.now()
    vms = []
    for port in layout.vms:
        spec = VMSpec(image_id=ids.new(ids.IMAGE))
        vm = VM(
            id=ids.new(ids.VM),
            spec=spec,
            state=State.RUNNING,
            node_id="node-1",
            created_at=now,
            updated_at=now,
            guest_ip="10.0.2.15",
        )
        node.ports[vm.id] = port
        ctx.own(vm)
        vms.append(vm.id)
    for number in range(layout.routes):
        route = Route(
            id=ids.new(ids.ROUTE),
            vm_id=vms[number % len(vms)],
            subdomain=layout.label(number),
            target_port=_GUEST_PORT,
            auto_wake=True,
            created_at=now,
            updated_at=now,
        )
        ctx.routes.put(route)
    return ctx


async def serve(layout: Layout, data: Path) -> None:
    """Serve until SIGTERM."""
    ctx = house(layout, data)
    proxy = ProxyServer(HouseGate(ctx), base_domains=[BASE], wake_timeout_s=30, stream_idle_timeout_s=900)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    await proxy.start("127.0.0.1", layout.port)
    await ended.wait()
    await proxy.close()


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m bench.proxy.hatch", description=__doc__)
    options.add_argument("--port", type=int, required=True)
    options.add_argument("--vms", type=int, nargs="+", required=True)
    options.add_argument("--routes", type=int, required=True)
    options.add_argument("--data", type=Path, required=True, help="a folder of its own")
    options.add_argument("--profile", type=Path, help="write cProfile's statistics here at the end")
    asked = options.parse_args()
    profile = cProfile.Profile() if asked.profile else None
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        if profile:
            profile.enable()
        runner.run(serve(Layout(asked.port, asked.vms, asked.routes), asked.data))
        if profile:
            profile.disable()
            profile.dump_stats(asked.profile)


if __name__ == "__main__":
    main()
