"""What the doors see of the house: see `ports.gate.Gate`. Everything on the fast path only reads memory."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from hatchvm.base.errors import HatchError, NotFound, Unavailable, Upstream
from hatchvm.control.activity import Activity, ActivityHold
from hatchvm.control.context import Context
from hatchvm.control.vms import wake
from hatchvm.domain.lifecycle import State
from hatchvm.domain.passage import is_open
from hatchvm.domain.route import Route

#: How long after its last change of state a guest's port may refuse before that is the answer: a booting guest has not
#: started its servers yet, a woken one had them all.
_BOOT_GRACE_S: Final = 60.0
#: A guest that answers nothing at all gets this long even when it has been up for days.
_SILENCE_S: Final = 5.0

_RUNNING: Final = State.RUNNING


class HouseGate:
    """A `Gate` over the control plane."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._find_owner = ctx.owners.find
        self._find_route = ctx.routes.find

    def route(self, subdomain: str) -> Route | None:
        return self._find_route(subdomain)

    def domain(self, name: str) -> Route | None:
        return self._ctx.routes.domain(name)

    def find(self, name: str) -> str | None:
        owner = self._ctx.owners.find(name) or self._ctx.owners.named(name)
        if owner is not None:
            return owner.vm.id
        route = self._ctx.routes.find(name)
        return route.vm_id if route else None

    def hold(self, vm_id: str, kind: str = "http", peer: str = "") -> ActivityHold:
        owner = self._find_owner(vm_id)
        return ActivityHold(owner.activity if owner else Activity(self._ctx.clock, None), kind, peer)

    def ready(self, route: Route) -> bool:
        owner = self._find_owner(route.vm_id)
        if owner is None:
            raise Upstream("vm not found")
        vm = owner.vm
        if vm.state is _RUNNING and vm.guest_ip is not None:
            return True
        return is_open(vm.state, addressed=vm.guest_ip is not None, auto_wake=route.auto_wake)

    async def need(self, vm_id: str, *, reason: str, timeout_s: float, by: str = "") -> None:
        try:
            await wake.need(self._ctx, vm_id, reason=reason, timeout_s=timeout_s, by=by)
        except NotFound as error:
            raise Upstream("vm not found") from error
        except Unavailable:
            raise
        except HatchError as error:
            raise Unavailable("failed to wake vm", detail=str(error), retry_after_s=1) from error

    async def dial(self, vm_id: str, port: int, *, timeout_s: float) -> socket.socket:
        owner = self._ctx.owners.find(vm_id)
        if owner is None:
            raise Upstream("vm not found")
        now = asyncio.get_running_loop().time()
        grace_s = max(0.0, owner.since + _BOOT_GRACE_S - self._ctx.clock.monotonic())
        return await self._ctx.node.dial(
            owner.vm,
            port,
            patient_until=now + min(timeout_s, grace_s),
            deadline=now + min(timeout_s, max(grace_s, _SILENCE_S)),
        )
