"""Real proxy workers between scripted clients and scripted guests, over a gate that tells them what happens."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import datetime

from hatchvm.domain.lifecycle import State
from hatchvm.domain.route import Route
from hatchvm.edge.http.tls.certificates import Pair
from hatchvm.edge.http.workers.wire import TLS, Settings
from hatchvm.ports.feed import Feed, Listener, Sight
from hatchvm.server.workers.link import Lender
from hatchvm.server.workers.workers import Workers
from hatchvm.testing.gate import FakeGate, FakeHold
from hatchvm.testing.stage import Stage


class FedHold(FakeHold):
    """A hold that is told later when it was used; its gate keeps the moments."""

    def __init__(self, gate: FedGate, vm_id: str) -> None:
        self._moments = gate.moments.setdefault(vm_id, [])
        super().__init__(gate, vm_id)

    def touched(self, at: datetime) -> None:
        self._moments.append(at)

    def drop(self) -> None:
        self.release()


class FedGate(FakeGate):
    """A `FakeGate` that is its own `Feed`. `wakes`: restores of each VM; `moments`: when holds were used, as told."""

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[str, State] = {}
        self.wakes: Counter[str] = Counter()
        self.moments: dict[str, list[datetime]] = {}
        self._listeners: list[Listener] = []

    def add(self, subdomain: str, port: int, *, vm_id: str = "", target_port: int = 80) -> Route:
        route = super().add(subdomain, port, vm_id=vm_id, target_port=target_port)
        self.move(route.vm_id, State.RUNNING)
        self.put(route)
        return route

    def put(self, route: Route) -> None:
        self.routes[route.subdomain] = route
        for listener in self._listeners:
            listener.saw_route(route, there=True)

    def remove(self, route: Route) -> None:
        del self.routes[route.subdomain]
        for listener in self._listeners:
            listener.saw_route(route, there=False)

    def move(self, vm_id: str, state: State) -> None:
        """The VM's state changes."""
        self.states[vm_id] = state
        (self.asleep.discard if state is State.RUNNING else self.asleep.add)(vm_id)
        for listener in self._listeners:
            listener.saw_vm(self._sight(vm_id))

    async def until_came(self, times: int) -> None:
        """Return when there were so many holds, whatever became of them."""
        while len(self.held_by) < times:
            self.changed.clear()
            await self.changed.wait()

    # -- ports.gate.Gate

    def hold(self, vm_id: str, kind: str = "http", peer: str = "") -> FedHold:
        self.held_by.append((kind, peer))
        return FedHold(self, vm_id)

    async def need(self, vm_id: str, *, reason: str, timeout_s: float, by: str = "") -> None:
        await super().need(vm_id, reason=reason, timeout_s=timeout_s, by=by)
        if self.states.get(vm_id) is not State.RUNNING:
            self.wakes[vm_id] += 1
            self.move(vm_id, State.RUNNING)

    # -- ports.feed.Feed

    def all_vms(self) -> Iterable[Sight]:
        return (self._sight(vm_id) for vm_id in list(self.states))

    def all_routes(self) -> Iterable[Route]:
        return list(self.routes.values())

    def join(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def leave(self, listener: Listener) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)

    def _sight(self, vm_id: str) -> Sight:
        return Sight(vm_id, vm_id.removeprefix("vm-"), self.states[vm_id], addressed=True)


def workers_over(
    gate: Lender, feed: Feed, count: int, *, silence_s: float = 10.0, pairs: Sequence[Pair] = ()
) -> Workers:
    """Workers as the daemon makes them. `pairs`: of the TLS port, if it is taken before they start."""
    files = [(str(pair.certificate), str(pair.key)) for pair in pairs]

    def settings(host: str, port: int, tls_port: int | None) -> Settings:
        return Settings(
            host=host,
            port=port,
            base_domains=["hatch.local", "hatch.localhost"],
            wake_timeout_s=30,
            stream_idle_timeout_s=900,
            fresh_slots=4,
            access_log=0,
            tls=None if tls_port is None else TLS(host, tls_port, files),
            log_level="warning",
            log_format="json",
        )

    return Workers(gate, feed, count=count, settings=settings, silence_s=silence_s)


class WorkerStage(Stage):
    """A `Stage` whose proxy is `workers`. Use `async with WorkerStage.on(...) as stage`."""

    def __init__(self, count: int, silence_s: float, pairs: Sequence[Pair]) -> None:
        super().__init__()
        self.gate: FedGate = FedGate()
        self.workers = workers_over(self.gate, self.gate, count, silence_s=silence_s, pairs=pairs)
        self.tls_port = 0

    @classmethod
    @contextlib.asynccontextmanager
    async def on(
        cls, count: int = 1, *, silence_s: float = 10.0, pairs: Sequence[Pair] = ()
    ) -> AsyncIterator[WorkerStage]:
        """`pairs`: with a TLS port, `tls_port`."""
        stage = cls(count, silence_s, pairs)
        if pairs:
            stage.tls_port = await stage.workers.take_tls("127.0.0.1", 0)
        stage.port = await stage.workers.start("127.0.0.1", 0)
        async with stage._played(stage.workers.close):
            yield stage
