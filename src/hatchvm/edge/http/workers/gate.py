"""The gate of a worker: a copy of the daemon's VMs and routes, leases on the VMs in use, questions for the rest.

A lease is a hold that the daemon keeps for this worker. It is asked for when the first client comes for a VM and given
back a moment after the last one left, so requests in between only touch memory. A VM is ready if it runs and the lease
on it is known to be held: only then can no suspend be under way unnoticed.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Final

from hatchvm.base.clock import Clock
from hatchvm.base.errors import HatchError, Internal, Unavailable, Upstream
from hatchvm.control.table import RouteTable
from hatchvm.domain.lifecycle import ENDED, State
from hatchvm.domain.passage import is_open
from hatchvm.domain.route import Route
from hatchvm.edge.http.workers.wire import BATCH, Cancel, Come, Dial, Done, Failed, Left, Need, Report, Used
from hatchvm.ports.feed import Sight

#: So long a lease is kept for the next request.
KEEP_S: Final = 0.5
#: Whoever came so short a time before word of a suspend arrived may have come after it began.
_JUST_CAME_S: Final = 0.25


class Lease:
    """One VM in use. `granted`: the daemon is known to hold the VM for this worker."""

    __slots__ = ("came_at", "granted", "left_at", "moved_at", "told_at", "users", "vm_id", "watched")

    def __init__(self, vm_id: str, now: datetime) -> None:
        self.vm_id = vm_id
        self.granted = False
        self.users = 0
        self.watched = False  # a timer will look whether anybody uses it still
        self.moved_at = self.told_at = now  # the last byte, and what the daemon knows of it
        self.came_at = self.left_at = 0.0  # when a user last came, and left; monotonic


class RemoteHold:
    """See `ports.gate.Hold`."""

    __slots__ = ("_gate", "_lease")

    def __init__(self, gate: RemoteGate, lease: Lease) -> None:
        self._gate = gate
        self._lease: Lease | None = lease

    def touch(self) -> None:
        if self._lease is not None:
            self._lease.moved_at = self._gate.clock.now()

    def release(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            self._gate.left(lease)


class RemoteGate:
    """A `Gate` whose daemon is at the other end of `send`. `forget` is called with a VM whose process has ended."""

    def __init__(self, send: Callable[[Report], None], clock: Clock) -> None:
        self.clock = clock
        self.forget: Callable[[str], None] = lambda _: None
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._vms: dict[str, Sight] = {}
        self._routes = RouteTable()
        self._leases: dict[str, Lease] = {}
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[socket.socket | None]] = {}
        self._closed = False

    # -- ports.gate.Gate

    def route(self, subdomain: str) -> Route | None:
        return self._routes.find(subdomain)

    def domain(self, name: str) -> Route | None:
        return self._routes.domain(name)

    def find(self, name: str) -> str | None:
        if name in self._vms:
            return name
        named = next((vm.vm_id for vm in self._vms.values() if vm.name == name), None)
        route = self._routes.find(name)
        return named or (route.vm_id if route else None)

    def hold(self, vm_id: str, kind: str = "http", peer: str = "") -> RemoteHold:
        lease = self._leases.get(vm_id)
        if lease is None:
            lease = self._leases[vm_id] = Lease(vm_id, self.clock.now())
            self._send(Come(vm_id, peer))
        elif self._is(vm_id, State.SUSPENDING):
            self._send(Come(vm_id, peer))
        lease.users += 1
        lease.came_at = self._loop.time()
        return RemoteHold(self, lease)

    def ready(self, route: Route) -> bool:
        vm, lease = self._vms.get(route.vm_id), self._leases.get(route.vm_id)
        if vm is None or vm.state is None:
            raise Upstream("vm not found")
        runs = is_open(vm.state, addressed=vm.addressed, auto_wake=route.auto_wake)
        return runs and lease is not None and lease.granted

    async def need(self, vm_id: str, *, reason: str, timeout_s: float, by: str = "") -> None:
        lease = self._leases.get(vm_id)
        await self._ask(lambda number: Need(number, vm_id, reason, timeout_s, by))
        if lease is not None:
            lease.granted = True

    async def dial(self, vm_id: str, port: int, *, timeout_s: float) -> socket.socket:
        sock = await self._ask(lambda number: Dial(number, vm_id, port, timeout_s))
        if sock is None:
            raise Internal("internal error", detail="the daemon passed no socket")
        return sock

    # -- what the daemon says

    def saw_vms(self, seen: Iterable[Sight]) -> None:
        for vm in seen:
            if vm.state is None:
                self._vms.pop(vm.vm_id, None)
            else:
                self._vms[vm.vm_id] = vm
            if vm.state is None or vm.state in ENDED:
                self.forget(vm.vm_id)
            elif vm.state is State.SUSPENDING:
                self._object(vm.vm_id)

    def saw_routes(self, routes: Iterable[Route]) -> None:
        for route in routes:
            self._routes.put(route)

    def route_gone(self, route: Route) -> None:
        self._routes.remove(route)

    def answered(self, answer: Done | Failed, passed: socket.socket | None) -> None:
        future = self._asked.get(answer.number)
        if future is None or future.done():  # whoever asked has gone
            if passed is not None:
                passed.close()
        elif isinstance(answer, Failed):
            future.set_exception(answer.error())
        else:
            future.set_result(passed)

    def report(self) -> None:
        """Tell the daemon when the last bytes were moved. Called every second."""
        moved = [lease for lease in self._leases.values() if lease.moved_at != lease.told_at]
        for start in range(0, max(1, len(moved)), BATCH):
            self._send(Used({lease.vm_id: lease.moved_at for lease in moved[start : start + BATCH]}))
        for lease in moved:
            lease.told_at = lease.moved_at

    def close(self) -> None:
        """The daemon has gone: nothing can be woken or dialled any more."""
        self._closed = True
        for future in self._asked.values():
            if not future.done():
                future.set_exception(_gone())

    # -- leases

    def left(self, lease: Lease) -> None:
        """One of its users has gone."""
        lease.users -= 1
        lease.left_at = self._loop.time()
        if not lease.watched:
            lease.watched = True
            self._loop.call_at(lease.left_at + KEEP_S, self._look, lease)

    def _look(self, lease: Lease) -> None:
        """Give a lease back that nobody has used for a moment. It has one timer, however many requests there are."""
        lease.watched = False
        if lease.users:
            return
        if lease.left_at + KEEP_S > self._loop.time():
            lease.watched = True
            self._loop.call_at(lease.left_at + KEEP_S, self._look, lease)
            return
        del self._leases[lease.vm_id]
        self._send(Left(lease.vm_id, lease.moved_at))

    def _object(self, vm_id: str) -> None:
        """A VM is being suspended: whoever has just come must have it taken back."""
        lease = self._leases.get(vm_id)
        if lease is not None and lease.users and lease.came_at > self._loop.time() - _JUST_CAME_S:
            self._send(Come(vm_id, ""))

    def _is(self, vm_id: str, state: State) -> bool:
        vm = self._vms.get(vm_id)
        return vm is not None and vm.state is state

    # -- questions

    async def _ask(self, question: Callable[[int], Need | Dial]) -> socket.socket | None:
        """Raises what the daemon answers; Unavailable if it has gone."""
        if self._closed:
            raise _gone()
        number = next(self._numbers)
        future: asyncio.Future[socket.socket | None] = self._loop.create_future()
        self._asked[number] = future
        self._send(question(number))
        try:
            return await future
        except asyncio.CancelledError:
            if future.cancelled():
                self._send(Cancel(number))
            elif not future.exception() and (sock := future.result()):
                sock.close()  # the answer came first
            raise
        finally:
            del self._asked[number]


def _gone() -> HatchError:
    return Unavailable("Hatch is restarting", retry_after_s=1)
