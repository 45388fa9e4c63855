"""A `Gate` whose VMs are loopback ports and whose wakes happen when the test says so."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from datetime import UTC, datetime

from hatchvm.base.errors import HatchError, Upstream
from hatchvm.domain.route import Route

_THEN = datetime(2026, 1, 1, tzinfo=UTC)


class FakeHold:
    """Counts itself in and out of its gate."""

    def __init__(self, gate: FakeGate, vm_id: str) -> None:
        self._gate = gate
        self._vm_id = vm_id
        self._open = True
        gate.holds[vm_id] += 1
        gate.changed.set()

    def touch(self) -> None:
        self._gate.touches[self._vm_id] += 1

    def release(self) -> None:
        if self._open:
            self._open = False
            self._gate.holds[self._vm_id] -= 1
            self._gate.changed.set()


class FakeGate:
    """Routes by hand. `asleep` VMs wake when `wake` is set; `ready` raises `refusals`, `dial` raises `dial_errors`.

    `domains`: custom domain -> its route. `names`: what users call a VM -> its id. `held_by`: kind and peer of every
    hold there ever was. `needed_by`: reason and asker of every need.
    """

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}
        self.domains: dict[str, Route] = {}
        self.ports: dict[tuple[str, int], int] = {}
        self.asleep: set[str] = set()
        self.wake = asyncio.Event()
        self.wake_error: HatchError | None = None
        self.refusals: dict[str, HatchError] = {}
        self.dial_errors: list[HatchError] = []
        self.names: dict[str, str] = {}
        self.holds: Counter[str] = Counter()
        self.touches: Counter[str] = Counter()
        self.held_by: list[tuple[str, str]] = []
        self.needed_by: list[tuple[str, str]] = []
        self.needs = 0
        self.needs_cancelled = 0
        self.dials = 0
        self.changed = asyncio.Event()

    def add(self, subdomain: str, port: int, *, vm_id: str = "", target_port: int = 80) -> Route:
        """Route `subdomain` to a server on loopback `port`, known to the guest as `target_port`."""
        route = Route(
            id=f"rt-{subdomain}",
            vm_id=vm_id or f"vm-{subdomain}",
            subdomain=subdomain,
            target_port=target_port,
            auto_wake=True,
            created_at=_THEN,
            updated_at=_THEN,
        )
        self.routes[subdomain] = route
        self.ports[route.vm_id, target_port] = port
        return route

    async def until_held(self, vm_id: str, times: int) -> None:
        """Return when so many hold the VM."""
        while self.holds[vm_id] < times:
            self.changed.clear()
            await self.changed.wait()

    async def until_released(self, vm_id: str) -> None:
        """Return when nothing holds the VM."""
        while self.holds[vm_id]:
            self.changed.clear()
            await self.changed.wait()

    async def until_needed(self, times: int) -> None:
        """Return when that many requests wait, or waited, for a wake."""
        while self.needs < times:
            self.changed.clear()
            await self.changed.wait()

    async def until_left(self, times: int) -> None:
        """Return when that many requests stopped waiting for a wake."""
        while self.needs_cancelled < times:
            self.changed.clear()
            await self.changed.wait()

    # -- ports.gate.Gate

    def route(self, subdomain: str) -> Route | None:
        return self.routes.get(subdomain)

    def domain(self, name: str) -> Route | None:
        return self.domains.get(name)

    def find(self, name: str) -> str | None:
        if name in self.names.values() or any(name == route.vm_id for route in self.routes.values()):
            return name
        return self.routes[name].vm_id if name in self.routes else self.names.get(name)

    def hold(self, vm_id: str, kind: str = "http", peer: str = "") -> FakeHold:
        self.held_by.append((kind, peer))
        return FakeHold(self, vm_id)

    def ready(self, route: Route) -> bool:
        assert self.holds[route.vm_id], "ready was asked without a hold"
        if route.vm_id in self.refusals:
            raise self.refusals[route.vm_id]
        return route.vm_id not in self.asleep

    async def need(self, vm_id: str, *, reason: str, timeout_s: float, by: str = "") -> None:
        assert self.holds[vm_id], "need was asked without a hold"
        self.needed_by.append((reason, by))
        self.needs += 1
        self.changed.set()
        try:
            if vm_id in self.asleep:
                await self.wake.wait()
        except asyncio.CancelledError:
            self.needs_cancelled += 1
            self.changed.set()
            raise
        if self.wake_error:
            raise self.wake_error
        self.asleep.discard(vm_id)

    async def dial(self, vm_id: str, port: int, *, timeout_s: float) -> socket.socket:
        self.dials += 1
        if self.dial_errors:
            raise self.dial_errors.pop(0)
        address = "127.0.0.1", self.ports[vm_id, port]
        sock = socket.socket()
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, address)
        except OSError as error:
            sock.close()
            raise Upstream("upstream refused connection", detail=str(error)) from error
        except asyncio.CancelledError:
            sock.close()
            raise
        return sock
