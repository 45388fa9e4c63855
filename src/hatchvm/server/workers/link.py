"""One proxy worker's connection to the house: keeps its copy of VMs and routes true, holds VMs for it, answers it."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, Iterable, Iterator
from datetime import datetime
from functools import partial
from itertools import islice
from typing import Any, Final, Protocol, TypeVar

from hatchvm.base import tasks
from hatchvm.base.clock import Clock
from hatchvm.base.errors import HatchError, Internal, Invalid
from hatchvm.domain.route import Route
from hatchvm.edge.http.workers import wire
from hatchvm.edge.http.workers.channel import Channel
from hatchvm.edge.http.workers.wire import (
    BATCH,
    Cancel,
    Come,
    Counts,
    Dial,
    Done,
    Drain,
    Failed,
    Gone,
    Left,
    Need,
    Order,
    Report,
    RouteRow,
    Routes,
    Serve,
    Serving,
    Settings,
    Unable,
    Used,
    VMRow,
    VMs,
)
from hatchvm.ports.feed import Feed, Sight
from hatchvm.ports.gate import Hold

_log: Final = logging.getLogger(__name__)

T = TypeVar("T")


class Lent(Hold, Protocol):
    """A hold whose activity is known a moment later only."""

    def touched(self, at: datetime) -> None:
        """Bytes flowed then, which may be a while ago."""

    def drop(self) -> None:
        """Release it, but the VM was last active when it was last touched."""


class Lender(Protocol):
    """What a link asks of the house: see `ports.gate.Gate`."""

    def hold(self, vm_id: str, kind: str = "http", peer: str = "") -> Lent: ...

    async def need(self, vm_id: str, *, reason: str, timeout_s: float, by: str = "") -> None: ...

    async def dial(self, vm_id: str, port: int, *, timeout_s: float) -> socket.socket: ...


class Link:
    """Open until `close`, or until the worker hangs up. `counts`: told what the worker has served."""

    def __init__(
        self, sock: socket.socket, gate: Lender, feed: Feed, clock: Clock, *, counts: Callable[[Counts], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        #: Its result: None, it listens; or why it does not.
        self.serving: asyncio.Future[OSError | None] = loop.create_future()
        #: Its result: why it said nothing more.
        self.ended: asyncio.Future[str] = loop.create_future()
        self.heard_at: float | None = None  # the loop's time of the last message
        self._loop = loop
        self._gate = gate
        self._feed = feed
        self._clock = clock
        self._counts = counts
        self._leases: dict[str, Lent] = {}
        self._answering: dict[int, asyncio.Task[socket.socket | None]] = {}
        self._later: list[Order] | None = []  # changes made while the first table is on its way
        self._telling: asyncio.Task[None] | None = None
        self._channel = Channel(sock, self)

    def begin(self, settings: Settings) -> None:
        """Tell the worker everything, then every change."""
        self._send(settings)
        self._feed.join(self)
        self._telling = tasks.supervise(self._tell(self._feed.all_vms(), self._feed.all_routes()), name="tell a worker")

    def drain(self) -> None:
        """Let it finish what it does, and end."""
        self._send(Drain())

    def catch_up(self) -> None:
        """Hear what the worker has said so far, if this loop was kept from it."""
        self._channel.read()

    def close(self, why: str = "") -> None:
        """Nothing of it remains: its questions are dropped, its VMs are let go. May be repeated."""
        self._feed.leave(self)
        self._channel.close()
        if self._telling is not None:
            self._telling.cancel()
        for task in self._answering.values():
            task.cancel()
        while self._leases:
            self._leases.popitem()[1].drop()
        if not self.ended.done():
            self.ended.set_result(why)

    # -- ports.feed.Listener

    def saw_vm(self, sight: Sight) -> None:
        self._change(VMs([VMRow.of(sight)]))

    def saw_route(self, route: Route, *, there: bool) -> None:
        row = RouteRow.of(route)
        self._change(Routes([row]) if there else Gone(row))

    # -- channel.End

    def lost(self, why: str) -> None:
        self.close(why)

    def heard(self, packet: bytes, passed: socket.socket | None) -> None:
        if passed is not None:
            passed.close()
        self.heard_at = self._loop.time()
        self._act(wire.report(packet))

    def _act(self, report: Report) -> None:
        match report:
            case Come(vm_id, peer):
                self._lend(vm_id, peer)
            case Left(vm_id, at):
                self._touched(vm_id, at)
                if lease := self._leases.pop(vm_id, None):
                    lease.drop()
            case Used(vms):
                for vm_id, at in vms.items():
                    self._touched(vm_id, at)
            case Counts():
                self._counts(report)
            case Serving():
                self._served(None)
            case Unable(number, sentence):
                self._served(OSError(number, sentence))
            case _:
                self._asked(report)

    def _asked(self, report: Need | Dial | Cancel) -> None:
        if not isinstance(report, Cancel) and report.number in self._answering:
            raise Invalid("a question has the number of another")
        match report:
            case Need(number, vm_id, reason, timeout_s, by):
                self._answer(number, self._gate.need(vm_id, reason=reason, timeout_s=timeout_s, by=by))
            case Dial(number, vm_id, port, timeout_s):
                self._answer(number, self._gate.dial(vm_id, port, timeout_s=timeout_s))
            case Cancel(number):
                if task := self._answering.get(number):
                    task.cancel()

    def _served(self, error: OSError | None) -> None:
        if not self.serving.done():
            self.serving.set_result(error)

    # -- the table

    async def _tell(self, vms: Iterable[Sight], routes: Iterable[Route]) -> None:
        """The first table, no faster than it is read. Changes made meanwhile come after it."""
        for some in _batches(vms):
            await self._tell_one(VMs([VMRow.of(vm) for vm in some]))
        for those in _batches(routes):
            await self._tell_one(Routes([RouteRow.of(route) for route in those]))
        later, self._later = self._later or [], None
        for change in later:
            self._send(change)
        self._send(Serve())

    async def _tell_one(self, order: Order) -> None:
        self._send(order)
        await asyncio.sleep(0)
        await self._channel.room()

    def _change(self, order: Order) -> None:
        if self._later is None:
            self._send(order)
        else:
            self._later.append(order)

    # -- leases

    def _lend(self, vm_id: str, peer: str) -> None:
        """A hold is an arrival: that a lease is there already matters to the hold only."""
        hold = self._gate.hold(vm_id, "http", peer)
        if vm_id in self._leases:
            hold.release()
        else:
            self._leases[vm_id] = hold

    def _touched(self, vm_id: str, at: datetime) -> None:
        if lease := self._leases.get(vm_id):
            lease.touched(min(at, self._clock.now()))

    # -- answers

    def _answer(self, number: int, work: Coroutine[Any, Any, socket.socket | None]) -> None:
        task = self._answering[number] = tasks.spawn(work, name="answer a worker")
        task.add_done_callback(partial(self._answered, number))

    def _answered(self, number: int, task: asyncio.Task[socket.socket | None]) -> None:
        del self._answering[number]
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._send(Done(number), task.result())
            return
        if not isinstance(error, HatchError):
            _log.error("answering a worker failed", exc_info=error)
            error = Internal("internal error")
        self._send(Failed.of(number, error))

    def _send(self, order: Order, passed: socket.socket | None = None) -> None:
        self._channel.send(wire.encode(order), passed)


def _batches(rows: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, BATCH)):
        yield batch
