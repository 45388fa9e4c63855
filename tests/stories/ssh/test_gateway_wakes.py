"""The SSH gateway before the real control plane: it wakes VMs as the HTTP proxy does, and together with it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hatchvm.base import tasks
from hatchvm.base.errors import Internal
from hatchvm.domain.lifecycle import State
from hatchvm.domain.vm import VM
from hatchvm.edge.ssh import allow
from hatchvm.edge.ssh.farewell import farewell
from hatchvm.edge.ssh.gateway import SSHGateway
from hatchvm.testing.stage import free_port
from hatchvm.testing.vmm import OPEN
from hatchvm.testing.world import World

#: The fake guest answers the same on all its ports: how many it has answered since it booted.
QUESTION = b"GET / HTTP/1.0\r\n\r\n"


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with World.running(tmp_path, drain_s=0) as world:
        world.machines.ports[22] = OPEN
        yield world


@pytest.fixture
async def gateway(world: World) -> AsyncIterator[SSHGateway]:
    gateway = SSHGateway(world.gate, allowed=allow.parse("127.0.0.1/32"), wake_timeout_s=30, clock=world.clock)
    yield gateway
    await gateway.aclose()


async def through(gateway: SSHGateway, vm: VM) -> int:
    """The port that leads to the VM."""
    port = free_port()
    gateway.open(vm.id, port)
    return port


async def ask(port: int) -> bytes:
    """What the guest, or the gateway, says to one client."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer):
        writer.write(QUESTION)
        return await reader.read()


async def test_http_and_ssh_that_come_together_share_one_restore(world: World, gateway: SSHGateway) -> None:
    vm = await world.asleep()
    port = await through(gateway, vm)
    answers = await asyncio.gather(ask(port), world.request(vm), ask(port), world.request(vm))
    counts = [int(answer.rpartition(b"\r\n")[2]) if isinstance(answer, bytes) else answer for answer in answers]
    assert sorted(counts) == [1, 2, 3, 4]
    assert world.step.taken.count("restore") == 1


async def test_two_hundred_clients_share_one_restore(world: World, gateway: SSHGateway) -> None:
    vm = await world.asleep()
    port = await through(gateway, vm)
    answers = await asyncio.gather(*(ask(port) for _ in range(200)))
    assert sorted(int(answer.rpartition(b"\r\n")[2]) for answer in answers) == list(range(1, 201))
    assert world.step.taken.count("restore") == 1


async def test_a_wake_goes_on_when_the_client_that_asked_for_it_is_gone(world: World, gateway: SSHGateway) -> None:
    vm = await world.asleep()
    port = await through(gateway, vm)
    reached, go, gone = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def wait(step: str) -> None:
        if step == "restore":
            reached.set()
            await go.wait()

    world.step.interfere = wait
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    await reached.wait()
    assert world.owner(vm).activity.holds == 1
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()
    leaving = tasks.spawn(world.owner(vm).activity.drained(30), name="leaving")
    leaving.add_done_callback(lambda _: gone.set())
    await gone.wait()
    assert world.owner(vm).activity.holds == 0
    go.set()
    await world.request(vm)
    assert world.state(vm) is State.RUNNING
    assert world.step.taken.count("restore") == 1


async def test_a_client_is_told_that_the_wake_failed_and_when_to_come_back(world: World, gateway: SSHGateway) -> None:
    vm = await world.asleep()
    port = await through(gateway, vm)

    world.step.fail_at("restore", Internal("the moon is full"))
    assert await ask(port) == farewell("failed to wake vm; try again in 1 s")
    assert world.state(vm) is State.SNAPSHOTTED


async def test_a_deleted_vm_is_not_found(world: World, gateway: SSHGateway) -> None:
    vm = await world.asleep()
    port = await through(gateway, vm)
    await world.vms.delete(vm.id)
    assert await ask(port) == farewell("vm not found")


async def test_a_session_of_a_vm_that_is_suspended_on_purpose_ends(world: World, gateway: SSHGateway) -> None:
    vm = await world.vm()
    port = await through(gateway, vm)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer):
        while "dial" not in world.step.taken:
            await asyncio.sleep(0)
        await world.vms.snapshot(vm.id)
        gateway.forget(vm.id)
        assert await reader.read() == b""
    assert world.owner(vm).activity.holds == 0
