"""What the control plane tells those who keep a copy of its VMs and routes: see `ports.feed.Feed`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from hatchvm.control.context import Context
from hatchvm.domain.route import Route
from hatchvm.domain.vm import VM
from hatchvm.ports.feed import Listener, Sight
from hatchvm.ports.house import Event

_DELETED: Final = "vm.deleted"


class HouseFeed:
    """A `Feed` over the control plane. Make one; it watches as long as the house lives."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._listeners: list[Listener] = []
        ctx.bus.watchers.append(self._event)
        ctx.routes.watchers.append(self._route)

    def all_vms(self) -> Iterable[Sight]:
        return (_sight(owner.vm) for owner in self._ctx.owners)

    def all_routes(self) -> Iterable[Route]:
        return iter(self._ctx.routes)

    def join(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def leave(self, listener: Listener) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)

    def _event(self, event: Event) -> None:
        owner = self._ctx.owners.find(event.vm_id)
        if event.type == _DELETED:
            self._tell(Sight(event.vm_id, None, None, addressed=False))
        elif owner is not None:
            self._tell(_sight(owner.vm))

    def _route(self, route: Route, there: bool) -> None:
        for listener in self._listeners:
            listener.saw_route(route, there=there)

    def _tell(self, sight: Sight) -> None:
        for listener in self._listeners:
            listener.saw_vm(sight)


def _sight(vm: VM) -> Sight:
    return Sight(vm.id, vm.spec.name, vm.state, addressed=vm.guest_ip is not None)
