"""VMs whose VMM takes no memory file: a pager serves what is whole on this host, and they live and die together."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from hatchvm.base.errors import Internal, Unavailable
from hatchvm.domain.lifecycle import State
from hatchvm.domain.vm import VM
from hatchvm.node import lazy
from hatchvm.node.agent import LocalNode
from hatchvm.testing.pager import faulty
from hatchvm.testing.vmm import FakeDriver, no_hook
from hatchvm.testing.world import World

TROUBLE: Final = faulty.trouble()
pytestmark = pytest.mark.skipif(TROUBLE is not None, reason=TROUBLE or "")


@pytest.fixture(autouse=True)
def by_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeDriver, "lazy_memory", "faults")
    monkeypatch.setattr(FakeDriver, "memory_by_faults", True)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World.running(tmp_path) as world:
        yield world


async def woken(world: World) -> VM:
    """A running VM that was woken from this host's files."""
    vm = await world.asleep()
    assert await world.request(vm) == 1
    return vm


def pager_pid(world: World, vm: VM) -> int | None:
    found = lazy.find(world.paths.vm(vm.id))
    return None if found is None else found._process.pid


def nobody_serves(world: World, vm: VM) -> bool:
    return pager_pid(world, vm) is None and not world.paths.vm(vm.id).faults.exists()


@asynccontextmanager
async def left_alone(folder: Path) -> AsyncIterator[tuple[World, VM]]:
    """A woken VM whose daemon has ended; in this process its watchers would go on."""
    world = await World(folder).start()
    vm = await woken(world)
    await world.stop()
    node = world.ctx.node
    assert isinstance(node, LocalNode)
    node._live.clear()
    node._pagers.clear()
    yield world, vm


async def test_it_sleeps_and_wakes_and_is_served_only_while_it_runs(world: World) -> None:
    vm = await world.vm()
    assert nobody_serves(world, vm)
    assert await world.request(vm) == 1
    for count in (2, 3):
        await world.vms.snapshot(vm.id)
        assert nobody_serves(world, vm)
        assert await world.request(vm) == count
        assert world.paths.vm(vm.id).faults.is_socket()
        assert pager_pid(world, vm)
    await world.vms.stop(vm.id)
    assert nobody_serves(world, vm)
    await world.vms.start(vm.id)
    assert nobody_serves(world, vm)


@pytest.mark.parametrize("step", ["restore", "restore done", "resume"])
async def test_a_wake_that_fails_leaves_the_pair_and_no_pager(world: World, step: str) -> None:
    vm = await world.asleep()
    world.step.fail_at(step, Internal("no luck"))
    with pytest.raises(Unavailable) as told:
        await world.request(vm)
    assert told.value.retry_after_s
    assert nobody_serves(world, vm)
    assert not world.machines.live()
    world.step.interfere = no_hook
    assert world.paths.vm(vm.id).saved.exists()
    world.clock.advance(told.value.retry_after_s)
    assert await world.request(vm) == 1


async def test_a_pager_that_dies_ends_its_vm(world: World) -> None:
    vm = await woken(world)
    pid = pager_pid(world, vm)
    assert pid
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(30):
        while world.state(vm) is not State.ERROR or world.owner(vm).busy:
            await asyncio.sleep(0.01)
    assert "memory" in world.now(vm).state_reason
    assert not world.machines.live()
    assert nobody_serves(world, vm)


async def test_a_daemon_that_restarts_finds_it_served(tmp_path: Path) -> None:
    async with left_alone(tmp_path) as (first, vm):
        pid = pager_pid(first, vm)
        async with World.running(tmp_path) as second:
            assert second.state(vm) is State.RUNNING
            assert pager_pid(second, vm) == pid
            assert await second.request(vm) == 2
            await second.vms.snapshot(vm.id)
            assert nobody_serves(second, vm)
            assert await second.request(vm) == 3


async def test_a_daemon_that_restarts_ends_a_vm_whose_pager_died(tmp_path: Path) -> None:
    async with left_alone(tmp_path) as (first, vm):
        pid = pager_pid(first, vm)
        assert pid
        os.kill(pid, signal.SIGKILL)
        async with World.running(tmp_path) as second:
            assert second.state(vm) is State.STOPPED
            assert not second.machines.live()
            assert nobody_serves(second, vm)
            await second.vms.start(vm.id)
