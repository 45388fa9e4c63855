"""Workers over a whole house: their leases are holds like any other, for a suspend and for the idle monitor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from hatchvm.base import tasks
from hatchvm.base.errors import Conflict
from hatchvm.control.feed import HouseFeed
from hatchvm.domain.lifecycle import State
from hatchvm.domain.vm import VM
from hatchvm.server.workers.workers import Workers
from hatchvm.testing.edge.workers import workers_over
from hatchvm.testing.world import World


class Doors:
    """A world and a worker before it: several are for `test_workers`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.workers: Workers = workers_over(world.gate, HouseFeed(world.ctx), 1)
        self.port = 0

    async def answer(self, vm: VM) -> bytes:
        """To one request on a connection of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: %s.hatch.local\r\nConnection: close\r\n\r\n" % vm.id.encode())
        answer = await reader.read()
        writer.close()
        return answer

    async def ask(self, vm: VM) -> int:
        """How many requests the guest has answered since it booted, with this one."""
        answer = await self.answer(vm)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        return int(answer.rpartition(b"\r\n")[2])

    async def until_answer(self, vm: VM, words: bytes) -> None:
        """Ask until the answer says so, as it must soon."""
        while words not in await self.answer(vm):
            pass


@pytest.fixture
async def doors(tmp_path: Path) -> AsyncIterator[Doors]:
    async with opened(tmp_path) as doors:
        yield doors


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[Doors]:
    async with World.running(root) as world:
        doors = Doors(world)
        vm = await world.vm()  # told before the workers listen
        assert vm is not None
        doors.port = await doors.workers.start("127.0.0.1", 0)
        try:
            yield doors
        finally:
            await doors.workers.close()


def only(world: World) -> VM:
    [owner] = world.ctx.owners
    return owner.vm


async def released(world: World, vm: VM) -> None:
    await world.owner(vm).activity.drained(60)


async def test_a_request_wakes_the_vm(doors: Doors) -> None:
    world, vm = doors.world, only(doors.world)
    assert await doors.ask(vm) == 1
    await world.vms.snapshot(vm.id)
    assert world.state(vm) is State.SNAPSHOTTED
    assert await doors.ask(vm) == 2
    use = await world.house.holds.use(vm.id)
    assert use.last_wake is not None
    assert (use.last_wake.reason, use.last_wake.by) == ("http", "127.0.0.1")


async def test_the_house_shows_a_lease_and_does_not_sleep_under_it(doors: Doors) -> None:
    world, vm = doors.world, only(doors.world)
    await doors.ask(vm)
    [hold] = (await world.house.holds.use(vm.id)).holds
    assert (hold.kind, hold.peer) == ("http", "127.0.0.1")
    await released(world, vm)
    assert not (await world.house.holds.use(vm.id)).holds


async def test_a_suspend_under_way_is_taken_back(doors: Doors) -> None:
    world, vm = doors.world, only(doors.world)
    assert await doors.ask(vm) == 1
    for answers, step in enumerate(["pause", "pause done", "capture"], start=2):
        await released(world, vm)
        hang = world.step.hang_at(step)
        suspending = tasks.spawn(world.vms.snapshot(vm.id), name="suspend")
        await hang.reached.wait()
        arrivals = world.owner(vm).activity.arrivals
        asking = tasks.spawn(doors.ask(vm), name="ask")
        while world.owner(vm).activity.arrivals == arrivals:
            await asyncio.sleep(0)
        hang.go.set()
        with pytest.raises(Conflict, match="request came"):
            await suspending
        assert await asking == answers


async def test_a_vm_that_died_is_not_proxied(doors: Doors) -> None:
    world, vm = doors.world, only(doors.world)
    await doors.ask(vm)
    world.crash(vm)
    while world.state(vm) is State.RUNNING:
        await asyncio.sleep(0)
    await doors.until_answer(vm, b"vm is in state")


async def test_routes_of_new_and_deleted_vms_are_told(doors: Doors) -> None:
    world = doors.world
    vm = await world.vm()
    await doors.until_answer(vm, b"HTTP/1.1 200")
    await world.vms.delete(vm.id)
    await doors.until_answer(vm, b"no route")
