"""QEMU as it fails to start: every reason is told in a sentence somebody can act on, and no process is left."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from hatchvm.base.errors import Exhausted, Unsupported
from hatchvm.base.paths import VMPaths
from hatchvm.domain.image import Boot
from hatchvm.ports.vmm import LaunchPlan, NetPlan
from hatchvm.vmm.qemu import driver as driver_module
from hatchvm.vmm.qemu.accel import Accelerator
from hatchvm.vmm.qemu.driver import QEMUDriver

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("vm")]

MAC: Final = "52:54:00:12:34:56"


@pytest.fixture
async def plan(tmp_path: Path) -> AsyncIterator[LaunchPlan]:
    kernel = tmp_path / "kernel"
    kernel.write_bytes(b"no kernel at all" * 1000)
    paths = VMPaths(tmp_path / "vm")
    paths.root.mkdir()
    yield LaunchPlan(
        vm_id="vm-000000000001",
        paths=paths,
        boot=Boot(kernel=kernel, initrd=None, rootfs=None, rootfs_format="raw", boot_args=""),
        boot_args="",
        image_digest="d",
        vcpu_count=1,
        mem_mib=32,
        net=None,
        has_seed=False,
    )
    assert not await QEMUDriver(Accelerator("tcg", memory=tmp_path / "a")).kill_stray(paths), "a process is left"


def qemu(folder: Path, binary: str | None = None) -> QEMUDriver:
    return QEMUDriver(Accelerator("tcg", memory=folder / "accel.json", binary=binary))


async def test_a_kernel_that_is_none(plan: LaunchPlan, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"the VMM did not start: .*kernel"):
        await qemu(tmp_path).launch(plan)


async def test_a_binary_that_is_not_there(plan: LaunchPlan, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="no-such-qemu is not installed: apt-get install"):
        await qemu(tmp_path, "no-such-qemu").launch(plan)
    with pytest.raises(Unsupported, match="no-such-qemu is not installed"):
        await qemu(tmp_path, "no-such-qemu").check()


async def test_a_binary_that_is_no_program(plan: LaunchPlan, tmp_path: Path) -> None:
    binary = tmp_path / "qemu"
    binary.write_text("not a program")
    binary.chmod(0o755)
    with pytest.raises(Unsupported, match="does not run"):
        await qemu(tmp_path, str(binary)).launch(plan)


async def test_a_folder_that_is_not_there(plan: LaunchPlan, tmp_path: Path) -> None:
    with pytest.raises(Exhausted, match="the VMM could not be started"):
        await qemu(tmp_path).launch(replace(plan, paths=VMPaths(tmp_path / "nowhere")))


async def test_a_forward_that_somebody_took_is_replaced(
    plan: LaunchPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between our look and QEMU's bind somebody may take the port: others are tried, a few times."""
    offers = []
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = stranger.getsockname()[1]

        def offer(count: int, avoid: object = ()) -> list[int]:
            offers.append(count)
            return [taken] * count

        monkeypatch.setattr(driver_module, "free_ports", offer)
        net = NetPlan(guest_ip="10.0.2.15", guest_mac=MAC, forwards={80: 0})
        with pytest.raises(Exhausted, match="no free loopback port"):
            await qemu(tmp_path).launch(replace(plan, net=net))
    assert len(offers) > 1
