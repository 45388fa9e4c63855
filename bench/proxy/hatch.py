"""Hatch's proxy in a process of its own: the real `ProxyServer` over the real `HouseGate`, before guests on loopback.

Only what lies behind the gate's `dial` is left out: a guest is a loopback port. Routes can be added while it runs, see
`_add_routes`.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Final, cast

from bench.proxy.layout import BASE, Layout
from hatchvm.base import ids, tasks
from hatchvm.base.clock import SystemClock
from hatchvm.base.errors import Upstream
from hatchvm.base.loop import loop_factory
from hatchvm.control.context import Context
from hatchvm.control.events import Bus
from hatchvm.control.gate import HouseGate
from hatchvm.control.owner import Owners
from hatchvm.control.routes import RouteCases
from hatchvm.control.table import RouteTable
from hatchvm.domain.image import Boot, Image
from hatchvm.domain.lifecycle import State
from hatchvm.domain.route import Route
from hatchvm.domain.vm import VM, VMSpec
from hatchvm.edge.http.server import ProxyServer
from hatchvm.ports.node import Node
from hatchvm.store.store import SqlStore
from hatchvm.testing.net.resolver import FakeResolver
from hatchvm.testing.world import SETTINGS

_GUEST_PORT: Final = 80
_IMAGE: Final = "img-000000000001"


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


def context(layout: Layout, data: Path) -> Context:
    """A control plane with the layout's routes in memory; its VMs run. Its database is in `data`, and not open yet."""
    clock, node = SystemClock(), LoopbackNode()
    node.ports = {ids.new(ids.VM): port for port in layout.vms}
    ctx = Context(
        store=SqlStore(f"sqlite:///{data}/hatch.db"),
        node=cast(Node, node),
        clock=clock,
        bus=Bus(clock),
        owners=Owners(),
        routes=RouteTable(),
        settings=SETTINGS,
        resolver=FakeResolver(),
        port_is_free=lambda port: True,
    )
    now = clock.now()
    at: Any = {"created_at": now, "updated_at": now}
    for vm_id in node.ports:
        spec = VMSpec(image_id=_IMAGE)
        ctx.own(VM(id=vm_id, spec=spec, state=State.RUNNING, node_id="node-1", guest_ip="10.0.2.15", **at))
    vm_ids = list(node.ports)
    for number in range(layout.routes):
        to: Any = {"vm_id": vm_ids[number % len(vm_ids)], "target_port": _GUEST_PORT, "auto_wake": True}
        ctx.routes.put(Route(id=ids.new(ids.ROUTE), subdomain=layout.label(number), **to, **at))
    return ctx


async def house(layout: Layout, data: Path) -> Context:
    """The same, its VMs written to the database, so that routes to them can be."""
    ctx = context(layout, data)
    boot = Boot(kernel=Path("/kernel"), initrd=None, rootfs=None, rootfs_format="raw", boot_args="")
    image = Image(id=_IMAGE, name=None, boot=boot, digest="", size_bytes=0, created_at=ctx.clock.now())
    await ctx.store.open()
    async with ctx.store.begin() as tx:
        await tx.images.insert(image)
        for owner in ctx.owners:
            await tx.vms.insert(owner.vm)
    return ctx


async def serve(layout: Layout, data: Path) -> None:
    """Serve until SIGTERM."""
    ctx = await house(layout, data)
    proxy = ProxyServer(HouseGate(ctx), base_domains=[BASE], wake_timeout_s=30, stream_idle_timeout_s=900)
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    await proxy.start("127.0.0.1", layout.port)
    obeying = tasks.spawn(_add_routes(ctx, orders), name="orders")
    await ended.wait()
    await tasks.cancel_and_wait(obeying)
    await proxy.close()
    await ctx.store.close()


async def _add_routes(ctx: Context, orders: asyncio.StreamReader) -> None:
    """Every line that comes is a subdomain to be routed to the first VM."""
    routes, vm_id = RouteCases(ctx), next(iter(ctx.owners)).vm.id
    async for line in orders:
        await routes.create(vm_id, subdomain=line.decode().strip(), target_port=_GUEST_PORT, auto_wake=True)


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
