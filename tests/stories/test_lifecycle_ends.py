"""Ends, asked for or not: a VMM that dies, a guest that shuts down, a VM deleted in the middle of anything."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hatchvm.base import tasks
from hatchvm.base.errors import HatchError, NotFound, Upstream
from hatchvm.domain.lifecycle import State
from hatchvm.domain.vm import NewVM
from hatchvm.ports.vmm import Exit
from hatchvm.testing.vmm import no_hook
from hatchvm.testing.world import World


async def quiet(world: World, vm_id: str) -> None:
    owner = world.ctx.owners.find(vm_id)
    for _ in range(10):
        await asyncio.sleep(0)
    if owner is not None:
        await owner.idle(10)


@pytest.mark.parametrize(
    ("by_guest", "state", "reason"),
    [(True, State.STOPPED, "the guest shut down"), (False, State.ERROR, "the VMM ended unexpectedly")],
)
async def test_a_process_that_ends_by_itself(world: World, by_guest: bool, state: State, reason: str) -> None:
    vm = await world.vm()
    world.crash(vm, by_guest=by_guest)
    await quiet(world, vm.id)
    assert (world.state(vm), world.now(vm).state_reason) == (state, reason)
    await world.vms.start(vm.id)
    assert await world.request(vm) == 1


@pytest.mark.parametrize("step", ["pause", "capture", "capture done", "quit"])
async def test_a_process_that_dies_during_a_suspend(world: World, step: str) -> None:
    vm = await world.vm()

    async def shoot(at: str) -> None:
        if at == step:
            world.step.interfere = no_hook
            world.crash(vm)

    world.step.interfere = shoot
    try:
        await world.vms.snapshot(vm.id)
    except HatchError:
        await quiet(world, vm.id)
        assert (world.state(vm), await world.snapshots(vm)) == (State.ERROR, [])
        assert world.now(vm).state_reason
    else:
        assert world.state(vm) is State.SNAPSHOTTED
        assert await world.request(vm) == 1
    assert not world.machines.violations


@pytest.mark.parametrize(
    "step", ["restore", "restore done", "resume", "resume done", "commit", "put", "capture", "quit"]
)
async def test_a_vm_can_be_deleted_in_the_middle_of_anything(world: World, step: str) -> None:
    vm = await world.asleep()
    reached, go = asyncio.Event(), asyncio.Event()

    async def hold_up(at: str) -> None:
        if at == step and not reached.is_set():
            reached.set()
            await go.wait()

    world.step.interfere = hold_up

    async def wake_and_suspend() -> None:
        await world.request(vm)
        await world.vms.snapshot(vm.id)

    work = tasks.spawn(wake_and_suspend(), name="work")
    await reached.wait()
    deletion = tasks.spawn(world.vms.delete(vm.id), name="delete")
    await asyncio.sleep(0)
    if step != "put":  # the deletion itself ends an upload, which could be done before its turn comes
        go.set()
    await deletion
    await asyncio.wait([work])
    assert isinstance(work.exception(), HatchError)
    assert not world.machines.live()
    assert not await world.rows()
    assert not [*world.paths.vms.glob("*")]
    assert not [path for path in world.paths.objects.glob("snapshots/**/*") if path.is_file()]
    with pytest.raises(NotFound):
        await world.vms.get(vm.id)
    with pytest.raises(Upstream, match="vm not found"):
        await world.gate.need(vm.id, reason="http", timeout_s=1)
    assert world.gate.route(vm.id) is None


async def test_stopping_and_starting_keeps_the_disk_and_not_the_memory(world: World) -> None:
    vm = await world.vm()
    before = world.memory(vm)["life"]
    await world.request(vm)
    assert (await world.vms.stop(vm.id)).state is State.STOPPED
    assert not world.paths.vm(vm.id).memory.exists()
    assert (await world.vms.start(vm.id)).state is State.RUNNING
    assert world.memory(vm)["life"] != before


async def test_a_guest_that_ignores_the_power_button_is_ended(world: World) -> None:
    vm = await world.vm()
    hang = world.step.hang_at("power_button")
    stopping = tasks.spawn(world.vms.stop(vm.id), name="stop")
    await hang.reached.wait()
    world.clock.advance(world.ctx.settings.halt_s)
    assert (await stopping).state is State.STOPPED
    assert not world.machines.live()


async def test_a_client_that_hangs_up_leaves_a_create_that_ends(world: World) -> None:
    hang = world.step.hang_at("launch")
    client = tasks.spawn(world.vms.create(NewVM()), name="client")
    await hang.reached.wait()
    client.cancel()
    hang.go.set()
    await asyncio.wait([client])
    (vm,) = await world.rows()
    assert (vm.state, world.state(vm)) == (State.RUNNING, State.RUNNING)


async def test_a_second_daemon_adopts_what_runs_and_keeps_what_sleeps(tmp_path: Path) -> None:
    first = await World(tmp_path).start()
    running, sleeping, halted = await first.vm(), await first.asleep(), await first.vm()
    await first.request(running)
    await first.vms.stop(halted.id)
    await first.stop()
    async with World.running(tmp_path, clock=first.clock) as second:
        assert [second.state(vm) for vm in (running, sleeping, halted)] == [
            State.RUNNING,
            State.SNAPSHOTTED,
            State.STOPPED,
        ]
        assert await second.request(running) == 2
        assert await second.request(sleeping) == 1
        second.crash(running)
        await quiet(second, running.id)
        assert second.state(running) is State.ERROR


async def test_after_the_host_lost_power_only_what_was_stored_is_believed(tmp_path: Path) -> None:
    first = await World(tmp_path).start()
    running, stored, awake = await first.vm(), await first.asleep(), await first.asleep()
    await first.request(awake)
    await first.stop()
    for pid in first.machines.live():
        first.machines.end(pid, Exit(False, "the power went"))
    async with World.running(tmp_path, clock=first.clock, boot_id="boot-2") as second:
        assert [second.state(vm) for vm in (running, stored, awake)] == [
            State.STOPPED,
            State.SNAPSHOTTED,
            State.STOPPED,
        ]
        assert "host rebooted" in second.now(running).state_reason
        assert await second.request(stored) == 1
