"""State changes, told to whoever listens."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable
from typing import Final

from hatchvm.base.clock import Clock
from hatchvm.domain.vm import VM
from hatchvm.ports.house import Event

_BACKLOG: Final = 1000


class Bus:
    """Fan-out without waiting: a listener that is too slow loses events, never slows a VM."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ids = itertools.count(1)
        self._listeners: set[asyncio.Queue[Event]] = set()
        #: Told of every event at once, before anybody else acts on it. They must be quick and must not fail.
        self.watchers: list[Callable[[Event], None]] = []

    def publish(self, kind: str, vm: VM) -> None:
        event = Event(
            id=next(self._ids), at=self._clock.now(), type=kind, vm_id=vm.id, state=vm.state, reason=vm.state_reason
        )
        for watcher in self.watchers:
            watcher(event)
        for queue in self._listeners:
            if not queue.full():
                queue.put_nowait(event)

    async def subscribe(self, vm_id: str | None) -> AsyncGenerator[Event, None]:
        queue: asyncio.Queue[Event] = asyncio.Queue(_BACKLOG)
        self._listeners.add(queue)
        try:
            while True:
                event = await queue.get()
                if vm_id is None or event.vm_id == vm_id:
                    yield event
        finally:
            self._listeners.discard(queue)
