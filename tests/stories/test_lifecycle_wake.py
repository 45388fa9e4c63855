"""Waking: one restore however many ask, whoever leaves; a broken one is left alone for a while and says why."""

from __future__ import annotations

import asyncio
from dataclasses import fields

import pytest

from hatchvm.base import tasks
from hatchvm.base.errors import HatchError, Internal, Unavailable, Unsupported
from hatchvm.domain.lifecycle import State
from hatchvm.domain.snapshot import Stamp
from hatchvm.domain.vm import NewVM
from hatchvm.testing.vmm import STAMP
from hatchvm.testing.world import World


class Gate:
    """Stops at a step until it is opened; fails it then with `error`, if there is one."""

    def __init__(self, world: World, step: str, error: HatchError | None = None) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()
        self._step = step
        self._error = error
        world.step.interfere = self

    async def __call__(self, step: str) -> None:
        if step == self._step:
            self.reached.set()
            await self.open.wait()
            if self._error is not None:
                raise self._error


async def breathe() -> None:
    """Let everybody who can go on go on."""
    for _ in range(20):
        await asyncio.sleep(0)


async def need(world: World, vm_id: str, timeout_s: float = 30) -> None:
    await world.gate.need(vm_id, reason="http", timeout_s=timeout_s)


async def test_a_thousand_askers_share_one_wake(world: World) -> None:
    vm = await world.asleep()
    life = world.memory(vm)["life"]
    gate = Gate(world, "restore")
    askers = [tasks.spawn(need(world, vm.id), name="asker") for _ in range(1000)]
    await gate.reached.wait()
    gate.open.set()
    await asyncio.gather(*askers)
    assert world.step.taken.count("restore") == 1
    assert world.state(vm) is State.RUNNING
    assert world.memory(vm)["life"] == life


async def test_all_askers_share_a_failure_and_the_next_ones_are_told_when_to_come_back(world: World) -> None:
    vm = await world.asleep()
    gate = Gate(world, "restore", Internal("the moon is full"))
    askers = [tasks.spawn(need(world, vm.id), name="asker") for _ in range(100)]
    await gate.reached.wait()
    gate.open.set()
    outcomes = await asyncio.gather(*askers, return_exceptions=True)
    assert {(type(outcome), str(outcome)) for outcome in outcomes} == {(Unavailable, "failed to wake vm")}
    assert world.step.taken.count("restore") == 1
    now = world.now(vm)
    assert (now.state, now.state_reason, now.wake_failures) == (
        State.SNAPSHOTTED,
        "wake failed: the moon is full",
        1,
    )
    with pytest.raises(Unavailable, match="failed to wake vm") as told:
        await need(world, vm.id)
    assert told.value.retry_after_s == 1
    assert world.step.taken.count("restore") == 1, "too early to try again"


async def test_the_delay_grows_and_the_first_success_ends_it(world: World) -> None:
    vm = await world.asleep()
    gate = Gate(world, "restore", Internal("not yet"))
    gate.open.set()
    delays = []
    for _ in range(3):
        with pytest.raises(Unavailable) as told:
            await need(world, vm.id)
        assert told.value.retry_after_s is not None
        delays.append(told.value.retry_after_s)
        world.clock.advance(told.value.retry_after_s)
    assert delays == [1, 2, 4]
    gate = Gate(world, "none")
    await need(world, vm.id)
    assert (world.state(vm), world.now(vm).wake_failures, world.now(vm).state_reason) == (State.RUNNING, 0, "")


@pytest.mark.parametrize("name", [field.name for field in fields(Stamp)])
async def test_what_does_not_fit_is_refused_before_anything_starts(world: World, name: str) -> None:
    """The words for each difference: `tests/unit/domain/test_values.py`."""
    vm = await world.asleep()
    world.driver.differs = {name: 7 if isinstance(getattr(STAMP, name), int) else "other"}
    with pytest.raises(Unavailable, match="failed to wake vm"):
        await need(world, vm.id)
    assert world.state(vm) is State.SNAPSHOTTED
    reason = world.now(vm).state_reason
    assert reason.startswith("wake failed: the saved memory does not fit this host: ")
    assert reason.endswith(f"; its disk can still be booted: hatchvm vm restore --disk {vm.id}")
    assert "restore" not in world.step.taken
    world.driver.differs = {}
    world.clock.advance(1)
    assert await world.request(vm) == 1


@pytest.mark.parametrize("name", [field.name for field in fields(Stamp)])
async def test_what_does_not_fit_is_not_even_fetched(world: World, name: str) -> None:
    vm = await world.asleep()
    await world.request(vm)
    newest = await world.vms.snapshot(vm.id)
    older = (await world.snapshots(vm))[-1]
    world.driver.differs = {name: 7 if isinstance(getattr(STAMP, name), int) else "other"}
    advice = f"; its disk can still be booted: hatchvm vm restore --disk --snapshot {older.id} {vm.id}"
    world.step.taken.clear()
    with pytest.raises(Unsupported, match="the saved memory does not fit this host: ") as refused:
        await world.vms.restore(vm.id, older.id)
    assert str(refused.value).endswith(advice)
    assert world.state(vm) is State.SNAPSHOTTED
    assert world.step.taken.count("get") == 1, "only the manifest"
    with pytest.raises(Unsupported, match="copy it on a host like the one it was made on"):
        await world.vms.create(NewVM(snapshot_id=newest.id))
    world.driver.differs = {}
    assert await world.request(vm) == 2, "its own memory was not touched"


async def test_a_restore_is_told_why_a_wake_failed(world: World) -> None:
    vm = await world.asleep()
    world.driver.differs = {"cpu_model": "Toes"}
    with pytest.raises(Unsupported, match="it was made on CPU 'Fingers', this host has 'Toes'"):
        await world.vms.restore(vm.id, None)
    with pytest.raises(Unavailable, match=r"^wake failed: .*'Toes'") as told:
        await world.vms.restore(vm.id, None)
    assert told.value.retry_after_s == 1
    world.driver.differs = {}
    world.clock.advance(1)
    assert (await world.vms.restore(vm.id, None)).state is State.RUNNING


@pytest.mark.parametrize("leave", ["cancel", "timeout"])
async def test_the_wake_outlives_who_asked_for_it(world: World, leave: str) -> None:
    vm = await world.asleep()
    gate = Gate(world, "restore")
    asker = tasks.spawn(need(world, vm.id), name="asker")
    await gate.reached.wait()
    if leave == "cancel":
        await tasks.cancel_and_wait(asker)
    else:
        world.clock.advance(31)
        with pytest.raises(Unavailable, match="failed to wake vm") as told:
            await asker
        assert told.value.retry_after_s
    gate.open.set()
    await need(world, vm.id)
    assert world.step.taken.count("restore") == 1
    assert world.state(vm) is State.RUNNING


@pytest.mark.parametrize("step", ["restore", "restore done", "resume"])
async def test_a_wake_that_takes_too_long_is_given_up_and_leaves_no_process(world: World, step: str) -> None:
    vm = await world.asleep()
    gate = Gate(world, step)
    asker = tasks.spawn(need(world, vm.id, 1000), name="asker")
    await gate.reached.wait()
    world.clock.advance(121)
    if step == "resume":  # past the last step nothing is given up
        gate.open.set()
        await asker
        assert world.state(vm) is State.RUNNING
        return
    with pytest.raises(Unavailable):
        await asker
    assert not world.machines.live()
    assert "longer than 120 s" in world.now(vm).state_reason
    world.step.interfere = Gate(world, "none")
    world.clock.advance(60)
    assert await world.request(vm) == 1


async def test_a_request_that_meets_the_process_ending_is_served_by_the_next_one(world: World) -> None:
    """The VMM of the suspend ends while the wake already waits: the end must not be taken for the new one's."""
    vm = await world.vm()
    assert await world.request(vm) == 1
    gate = Gate(world, "quit")
    suspend = tasks.spawn(world.vms.snapshot(vm.id), name="suspend")
    await gate.reached.wait()
    request = tasks.spawn(world.request(vm), name="request")
    await asyncio.sleep(0)
    gate.open.set()
    assert await request == 2
    await asyncio.wait([suspend])
    await world.owner(vm).idle(10)
    assert world.state(vm) is State.RUNNING
    assert await world.request(vm) == 3


async def test_a_crash_is_not_blamed_on_the_process_that_came_after(world: World) -> None:
    """The VMM is killed between the last look and `quit`: the suspend is complete all the same, and so is the wake."""
    vm = await world.vm()
    await world.request(vm)
    gate = Gate(world, "quit")
    suspend = tasks.spawn(world.vms.snapshot(vm.id), name="suspend")
    await gate.reached.wait()
    request = tasks.spawn(world.request(vm), name="request")
    await asyncio.sleep(0)
    world.crash(vm)
    await breathe()
    gate.open.set()
    assert await request == 2
    await asyncio.wait([suspend])
    await world.owner(vm).idle(10)
    assert world.state(vm) is State.RUNNING


async def test_who_asks_while_it_starts_gets_the_started_one(world: World) -> None:
    vm = await world.vm()
    await world.vms.stop(vm.id)
    gate = Gate(world, "launch")
    start = tasks.spawn(world.vms.start(vm.id), name="start")
    await gate.reached.wait()
    asker = tasks.spawn(need(world, vm.id), name="asker")
    await asyncio.sleep(0)
    gate.open.set()
    await asyncio.gather(start, asker)
    assert world.state(vm) is State.RUNNING


async def test_a_stopped_vm_is_not_woken(world: World) -> None:
    vm = await world.vm()
    await world.vms.stop(vm.id)
    with pytest.raises(Unavailable, match='vm is in state "stopped", not proxying'):
        await need(world, vm.id)
