"""One owner per VM: the only way a VM changes.

Every change (create, suspend, wake, stop, delete, a process that died) is a verb that takes its turn at the VM's owner:
first come, first served, one at a time, detached from whoever asked (a client that hangs up cancels nothing). A verb
moves the VM through `Owner.move`, the one door to its row: the lifecycle table is asked, the row is written under its
generation, then memory and listeners learn of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

import structlog

from hatchvm.base import tasks
from hatchvm.base.clock import Clock
from hatchvm.base.errors import HatchError, NotFound
from hatchvm.control.activity import Activity
from hatchvm.control.events import Bus
from hatchvm.domain.lifecycle import TARGET, Event, State, advance
from hatchvm.domain.snapshot import Snapshot
from hatchvm.domain.vm import VM
from hatchvm.ports.house import Woken
from hatchvm.ports.store import Store, Tx
from hatchvm.telemetry import logs

T = TypeVar("T")
#: Further rows to write in the unit of work that writes the VM.
Also = Callable[[Tx], Awaitable[None]]

_log = structlog.get_logger()


class Owner:
    """Owns one VM. `vm` is its row as last written; only `move` replaces it."""

    def __init__(self, vm: VM, store: Store, bus: Bus, clock: Clock) -> None:
        self.vm = vm
        self.activity = Activity(clock, vm.last_active_at)
        self.gone = False
        #: The newest snapshot while it is not committed, and its upload.
        self.pending: Snapshot | None = None
        self.upload: asyncio.Task[None] | None = None
        #: When a failed upload is tried again; None while it is under way.
        self.upload_retry_at: datetime | None = None
        #: The wake under way, which every asker shares.
        self.waking: asyncio.Task[None] | None = None
        #: The last wake that this daemon saw.
        self.last_wake: Woken | None = None
        #: How many processes were started for it: whose end is reported may not be the one that runs now.
        self.runs = 0
        #: Monotonic time of the last change of state.
        self.since = clock.monotonic()
        #: Monotonic time before which a broken wake is not tried again.
        self.retry_at = 0.0
        self._store = store
        self._bus = bus
        self._clock = clock
        self._turn = asyncio.Lock()
        self._verbs = 0
        self._owed: list[Also] = []

    @property
    def busy(self) -> bool:
        """True while a verb runs or waits for its turn."""
        return self._verbs > 0

    async def do(self, verb: Callable[[], Awaitable[T]], *, name: str) -> T:
        """Run `verb` when its turn comes. Cancelling the caller does not cancel the verb."""
        return await asyncio.shield(self.start(verb, name=name))

    def start(self, verb: Callable[[], Awaitable[T]], *, name: str) -> asyncio.Task[T]:
        """Like `do`, without waiting: the task can be awaited (shielded) by many."""

        async def turn() -> T:
            try:
                async with self._turn:
                    if self.gone:
                        raise NotFound("vm not found")
                    try:
                        return await verb()
                    except asyncio.CancelledError:
                        raise  # the daemon ends; the next one finds out from the host how far this came
                    except BaseException:
                        await self._leave_no_half_way()
                        raise
            finally:
                self._verbs -= 1

        self._verbs += 1
        task = tasks.spawn(turn(), name=f"{name} {self.vm.id}")
        task.add_done_callback(_report_unheard)
        return task

    async def move(self, event: Event, *, reason: str = "", also: Also | None = None, **changes: Any) -> VM:
        """Advance the VM and write its row, before the effect; `also` writes other rows in the same unit of work.

        Raises Conflict if the lifecycle forbids it, Exhausted or Unavailable if the store fails; nothing changed then.
        """
        state = advance(self.vm.state, event)
        return await self._write(state, f"vm.{event.value}", reason, also, changes)

    async def settle(self, event: Event, *, reason: str = "", also: Also | None = None, **changes: Any) -> VM:
        """Like `move`, for what has already happened on the host: it is true even if it cannot be written now.

        The row then follows with the next move, and `also` with it; a restart would find out from the host.
        """
        state = advance(self.vm.state, event)
        try:
            return await self._write(state, f"vm.{event.value}", reason, also, changes)
        except HatchError as error:
            if also is not None:
                self._owed.append(also)
            _log.error(logs.STORE_BEHIND, vm=self.vm.id, state=state, error=str(error), detail=error.detail)
            self.vm = self._next(state, reason, changes)
            self.since = self._clock.monotonic()
            self._bus.publish(f"vm.{event.value}", self.vm)
            return self.vm

    async def recover(self, state: State, *, reason: str) -> VM:
        """Write what a restarted daemon found on the host, whatever the row said."""
        return await self._write(state, "vm.recovered", reason, None, {})

    def _next(self, state: State, reason: str, changes: dict[str, Any]) -> VM:
        return replace(
            self.vm,
            state=state,
            state_reason=reason,
            updated_at=self._clock.now(),
            last_active_at=self.activity.last_active_at,
            **changes,
        )

    async def _write(self, state: State, kind: str, reason: str, also: Also | None, changes: dict[str, Any]) -> VM:
        before, after = self.vm, self._next(state, reason, changes)
        async with self._store.begin() as tx:
            after = await tx.vms.update(after)
            for further in [*self._owed, *([also] if also is not None else [])]:
                await further(tx)
        self.vm = after
        self._owed.clear()
        if state in (State.STARTING, State.RESTORING):
            self.runs += 1
        if before.state is not state:
            self.since = self._clock.monotonic()
        _log.debug(logs.VM_STATE, vm=after.id, before=before.state, after=after.state, reason=reason)
        self._bus.publish(kind, after)
        return after

    async def _leave_no_half_way(self) -> None:
        """A verb ends in a stable state. One that does not is a bug, which must not take the VM with it."""
        if not self.gone and self.vm.state in TARGET:
            await self.settle(Event.FAIL, reason="Hatch failed in the middle of a change; its log tells more")

    async def idle(self, timeout_s: float) -> None:
        """Return when no verb runs or waits, or after the timeout."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.busy:
                    await asyncio.sleep(0)
                    async with self._turn:
                        pass

    async def forget(self) -> None:
        """The VM is deleted: its row goes, and every verb that still waits is told."""
        async with self._store.begin() as tx:
            await tx.vms.delete(self.vm.id)
        self.gone = True
        self._bus.publish("vm.deleted", self.vm)


class Owners:
    """Every VM of this node, by id."""

    def __init__(self) -> None:
        self._owners: dict[str, Owner] = {}
        #: The owner of the VM with this id, or None. Every request asks, so it is the dictionary's own method.
        self.find: Callable[[str], Owner | None] = self._owners.get

    def __iter__(self) -> Iterator[Owner]:
        return iter(list(self._owners.values()))

    def add(self, owner: Owner) -> None:
        self._owners[owner.vm.id] = owner

    def remove(self, vm_id: str) -> None:
        self._owners.pop(vm_id, None)

    def named(self, name: str) -> Owner | None:
        """The owner of the VM with this name."""
        return next((owner for owner in self._owners.values() if owner.vm.spec.name == name), None)

    def get(self, vm_id: str) -> Owner:
        """Raises NotFound."""
        owner = self._owners.get(vm_id)
        if owner is None:
            raise NotFound("vm not found")
        return owner

    def count(self, state: State) -> int:
        return sum(owner.vm.state is state for owner in self._owners.values())


def _report_unheard(task: asyncio.Task[Any]) -> None:
    """A verb whose asker left: its expected failures are in the VM's row already, a bug must still be seen."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, HatchError):
        _log.error("verb failed", task=task.get_name(), exc_info=error)
