"""Events: nobody waits for a slow listener, and nobody else misses what he misses."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Final

from hatchvm.base import tasks
from hatchvm.control.events import Bus
from hatchvm.domain.lifecycle import State
from hatchvm.domain.vm import VM, VMSpec
from hatchvm.ports.house import Event
from hatchvm.testing.clock import SteeredClock

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
KEPT: Final = 1000
MORE_THAN_FIT: Final = 1500


def vm(number: int) -> VM:
    spec = VMSpec(image_id="img-1")
    return VM(id=f"vm-{number}", spec=spec, state=State.RUNNING, node_id="n", created_at=NOW, updated_at=NOW)


async def test_a_slow_listener_loses_events_and_the_others_do_not() -> None:
    bus = Bus(SteeredClock())
    async with aclosing(bus.subscribe(None)) as slow, aclosing(bus.subscribe(None)) as quick:
        first = [tasks.spawn(anext(listener), name="listen") for listener in (slow, quick)]
        await asyncio.sleep(0)
        bus.publish("vm.booted", vm(1))
        assert [(await one).id for one in first] == [1, 1]
        heard = []
        for _ in range(MORE_THAN_FIT):
            bus.publish("vm.suspend", vm(1))
            heard.append((await anext(quick)).id)
        assert heard == list(range(2, MORE_THAN_FIT + 2))
        late = [(await anext(slow)).id]
        while len(late) < KEPT:
            late.append((await anext(slow)).id)
        assert late == list(range(2, KEPT + 2))
        bus.publish("vm.resumed", vm(1))
        assert (await anext(slow)).type == "vm.resumed"


async def test_a_listener_hears_of_his_vm_only() -> None:
    bus = Bus(SteeredClock())
    async with aclosing(bus.subscribe("vm-2")) as listener:
        hearing = tasks.spawn(anext(listener), name="listen")
        await asyncio.sleep(0)
        bus.publish("vm.booted", vm(1))
        bus.publish("vm.booted", vm(2))
        event = await hearing
    assert (event.id, event.vm_id, event.state) == (2, "vm-2", State.RUNNING)
    bus.publish("vm.booted", vm(2))


def test_a_watcher_is_told_before_anything_else_happens() -> None:
    bus = Bus(SteeredClock())
    seen: list[Event] = []
    bus.watchers.append(seen.append)
    bus.publish("vm.booted", vm(1))
    assert [(event.type, event.vm_id) for event in seen] == [("vm.booted", "vm-1")]
