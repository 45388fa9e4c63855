"""What every network of guests must do, with real guests on it."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Final

import pytest

from hatchvm.base import ids
from hatchvm.base.errors import Unavailable, Upstream
from hatchvm.base.paths import DataPaths
from hatchvm.base.process import boot_id
from hatchvm.domain.addressing import USER_GUEST_IP, mac_of
from hatchvm.domain.image import Image
from hatchvm.domain.lifecycle import State
from hatchvm.domain.vm import VM, VMSpec
from hatchvm.images import builtin
from hatchvm.net.bridge.bridge import BridgeNetwork
from hatchvm.net.bridge.settings import Bridge
from hatchvm.net.user import UserNetwork
from hatchvm.node.agent import LocalNode
from hatchvm.ports.network import Network
from hatchvm.server.config import load
from hatchvm.vmm.qemu.accel import Accelerator
from hatchvm.vmm.qemu.driver import QEMUDriver

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("vm")]

WEB: Final = 8080
CLOSED: Final = 8081
DEADLINE_S: Final = 60.0
USER_DATA: Final = f"#!/bin/sh\nmkdir /www && hostname >/www/index.html && httpd -p {WEB} -h /www\n"
NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)


class UserRig:
    def __init__(self, folder: Path) -> None:
        self.network: Network = UserNetwork()

    def seated(self, vm: VM, number: int) -> VM:
        return replace(vm, guest_ip=USER_GUEST_IP)

    async def remove(self) -> None:
        """There is nothing on the host."""


class BridgeRig:
    def __init__(self, folder: Path) -> None:
        name = f"hatch-{uuid.uuid4().hex[:8]}"
        self.network: Network = BridgeNetwork(
            Bridge(name="conf0", cidr=IPv4Interface("198.18.0.1/24"), netns=name, run=Path("/run/hatchvm"))
        )

    def seated(self, vm: VM, number: int) -> VM:
        return replace(vm, guest_ip=f"198.18.0.{10 + number}", tap_name=vm.id)

    async def remove(self) -> None:
        assert isinstance(self.network, BridgeNetwork)
        await self.network.remove()


Rig = UserRig | BridgeRig
RIGS: Final = [
    pytest.param(UserRig, id="user"),
    pytest.param(BridgeRig, id="bridge", marks=pytest.mark.skipif(os.geteuid() != 0, reason="a bridge needs root")),
]


@pytest.fixture(params=RIGS)
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    make: Callable[[Path], Rig] = request.param
    made = make(tmp_path)
    await made.network.open()
    yield made
    await made.remove()


@pytest.fixture
async def image() -> Image:
    return await builtin.build("tiny", load(None).cache_dir, print)


@pytest.fixture
def node(rig: Rig, tmp_path: Path) -> LocalNode:
    driver = QEMUDriver(Accelerator("auto", memory=tmp_path / "accel.json", binary=None))
    return LocalNode(
        "here", DataPaths(tmp_path), driver, None, private=rig.network, bridge=rig.network, boot_id=boot_id()
    )


def guest(rig: Rig, image: Image, number: int = 0) -> VM:
    vm_id = ids.new(ids.VM)
    spec = VMSpec(image_id=image.id, name=f"guest-{number}", mem_mib=128, user_data=USER_DATA)
    vm = VM(id=vm_id, spec=spec, state=State.RUNNING, node_id="here", created_at=NOW, updated_at=NOW)
    return rig.seated(replace(vm, guest_mac=mac_of(vm_id)), number)


async def page(node: LocalNode, vm: VM) -> str:
    """What the guest's web server says: its own name."""
    now = asyncio.get_running_loop().time()
    sock = await node.dial(vm, WEB, patient_until=now + DEADLINE_S, deadline=now + DEADLINE_S)
    reader, writer = await asyncio.open_connection(sock=sock)
    try:
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        return (await reader.read()).decode().rpartition("\r\n\r\n")[2].strip()
    finally:
        writer.close()


async def test_it_says_how_it_connects_and_may_be_opened_again(rig: Rig) -> None:
    assert await rig.network.check()
    await rig.network.open()


async def test_a_guest_is_reached_sleeps_and_is_reached_again(rig: Rig, node: LocalNode, image: Image) -> None:
    vm = guest(rig, image)
    try:
        await node.prepare(vm, image, USER_DATA)
        await node.boot(vm, image)
        assert await page(node, vm) == "guest-0"
        now = asyncio.get_running_loop().time()
        with pytest.raises(Upstream, match="upstream refused connection"):
            await node.dial(vm, CLOSED, patient_until=now, deadline=now + DEADLINE_S)
        for _ in range(2):
            assert await node.suspend(vm, image, lambda: False) is not None
            with pytest.raises(Unavailable):
                await node.dial(vm, WEB, patient_until=now, deadline=now)
            await node.wake(vm, image, {WEB})
            assert await page(node, vm) == "guest-0"
    finally:
        await node.destroy(vm)


async def test_each_guest_is_itself_and_a_sweep_spares_the_known(rig: Rig, node: LocalNode, image: Image) -> None:
    vms = [guest(rig, image, number) for number in range(2)]
    try:
        for vm in vms:
            await node.prepare(vm, image, USER_DATA)
            await node.boot(vm, image)
        assert [await page(node, vm) for vm in vms] == ["guest-0", "guest-1"]
        await node.destroy(vms[0])
        assert await node.sweep(vms[1:]) == []
        assert await page(node, vms[1]) == "guest-1"
    finally:
        for vm in vms:
            await node.destroy(vm)
            await node.destroy(vm)
