"""Which VMM is chosen, and what is said when the one that was asked for cannot be had. Scripts play the programs."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hatchvm.base.errors import Conflict, HatchError, Invalid, Unavailable, Unsupported
from hatchvm.base.process import boot_id, start_ticks
from hatchvm.domain.image import TINY, Boot, Image
from hatchvm.images import builtin
from hatchvm.server import vmm
from hatchvm.server.config import load
from hatchvm.vmm.firecracker import probe
from hatchvm.vmm.firecracker.requests import Devices
from hatchvm.vmm.firecracker.version import Installed


@dataclass(slots=True)
class Host:
    """A host on which Firecracker can run, unjailed. Tests take something away."""

    root: Path
    monkeypatch: pytest.MonkeyPatch
    works: bool = True
    tried: list[tuple[Installed, Path]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def set(self, **values: str) -> None:
        for name, value in values.items():
            self.monkeypatch.setenv(f"HATCH_{name}", value)

    def program(self, name: str, version: str = "Firecracker v1.16.1") -> Path:
        path = self.root / name
        path.write_text(f"#!/bin/sh\ncase $1 in --version) echo '{version}';; *) echo v10.0.0;; esac\n")
        path.chmod(0o755)
        return path

    async def choose(self) -> vmm.Chosen:
        return await vmm.choose(load(), self.said.append)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    for name in [name for name in os.environ if name.startswith("HATCH_")]:
        monkeypatch.delenv(name)
    host = Host(tmp_path, monkeypatch)
    host.set(NETWORK="bridge", JAIL="off", FIRECRACKER_BIN=str(host.program("firecracker")))
    host.set(DATA_DIR=str(tmp_path / "data"), CACHE_DIR=str(tmp_path / "cache"))
    boot = Boot(kernel=Path("/tiny/kernel"), initrd=None, rootfs=None, rootfs_format="raw", boot_args="")
    tiny = Image(
        id="img-1", name=TINY, boot=boot, digest="d", size_bytes=1, created_at=datetime(2026, 1, 1, tzinfo=UTC)
    )

    async def works(installed: Installed, kernel: Path, memory: Path) -> bool:
        host.tried.append((installed, kernel))
        return host.works

    monkeypatch.setattr(builtin, "find", lambda name, cache: tiny)
    monkeypatch.setattr(probe, "check", lambda: None)
    monkeypatch.setattr(probe, "works", works)
    return host


async def test_firecracker_is_taken_where_it_can_run(host: Host) -> None:
    chosen = await host.choose()
    assert (chosen.driver.name, chosen.why_not) == ("firecracker", "")
    assert [kernel for _, kernel in host.tried] == [Path("/tiny/kernel")]


async def test_without_a_jail_it_is_said_loudly(host: Host) -> None:
    await host.choose()
    (line,) = host.said
    assert line.startswith("Take care: HATCH_JAIL=off: VMs are not confined")


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"NETWORK": "user"}, "needs HATCH_NETWORK=bridge, which needs root"),
        ({"ACCEL": "tcg"}, "HATCH_ACCEL=tcg"),
        ({"FIRECRACKER_BIN": "/nowhere/firecracker"}, "HATCH_FIRECRACKER_BIN: /nowhere/firecracker is not installed"),
        ({"FIRECRACKER_BINS": "/nowhere/old"}, "HATCH_FIRECRACKER_BINS: /nowhere/old is not installed"),
        ({"JAIL": "on", "JAILER_BIN": "/nowhere/jailer"}, "HATCH_JAILER_BIN: /nowhere/jailer is not installed"),
    ],
)
async def test_what_is_missing_is_told_and_keeps_auto_with_qemu(host: Host, values: dict[str, str], why: str) -> None:
    host.set(**values)
    chosen = await host.choose()
    assert chosen.driver.name == "qemu"
    assert why in chosen.why_not
    assert not host.tried
    host.set(VMM="firecracker")
    with pytest.raises(HatchError, match=r"^(HATCH_VMM|HATCH_ACCEL)") as refused:
        await host.choose()
    assert isinstance(refused.value, Invalid | Unsupported)


async def test_a_kvm_that_runs_no_kernel_is_no_kvm(host: Host) -> None:
    host.works = False
    assert (await host.choose()).why_not == "no kernel starts under KVM here; HATCH_VMM=qemu works anywhere"
    host.set(VMM="firecracker")
    with pytest.raises(Unsupported, match=r"^HATCH_VMM=firecracker: no kernel starts under KVM here"):
        await host.choose()


async def test_a_host_without_kvm_is_told_so(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with monkeypatch.context() as patch:
        patch.setattr(probe, "_KVM", host.root / "kvm")
        with pytest.raises(Unsupported, match="there is no /dev/kvm"):
            probe.check()


async def test_vms_stay_with_the_vmm_that_made_them(host: Host) -> None:
    vms = host.root / "data" / "vms"
    (vms / "vm-1").mkdir(parents=True)
    assert (await host.choose()).driver.name == "firecracker", "a VM without a disk is nobody's"
    (vms / "vm-1" / "disk").touch()
    assert "made by QEMU" in (await host.choose()).why_not
    (vms / "vm-1" / "made-by").write_text("firecracker")
    assert (await host.choose()).driver.name == "firecracker"
    (vms / "vm-2").mkdir()
    (vms / "vm-2" / "made-by").write_text("qemu")
    assert "made by QEMU" in (await host.choose()).why_not
    host.set(VMM="firecracker")
    assert (await host.choose()).driver.name == "firecracker", "who says so knows"


async def test_qemu_that_was_asked_for_looks_no_further(host: Host) -> None:
    host.monkeypatch.delenv("HATCH_JAIL")
    host.set(VMM="qemu")
    chosen = await host.choose()
    assert (chosen.driver.name, chosen.why_not, host.tried) == ("qemu", "", [])


async def test_without_a_kernel_to_try_auto_is_qemu(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def build(*_: object) -> Image:
        raise Unavailable("apt could not fetch the image's Debian packages")

    monkeypatch.setattr(builtin, "find", lambda name, cache: None)
    monkeypatch.setattr(builtin, "build", build)
    assert "apt could not fetch" in (await host.choose()).why_not
    host.set(DEFAULT_KERNEL_PATH="/my/kernel")
    assert (await host.choose()).driver.name == "firecracker"
    assert [kernel for _, kernel in host.tried] == [Path("/my/kernel")]


def test_settings_reach_the_driver(host: Host) -> None:
    host.set(VMM="firecracker", DISK_RATE="1MiB", NET_RATE="2MiB", HUGE_PAGES="2M", JAIL_UIDS="70000-70009")
    host.set(FIRECRACKER_BINS=str(host.program("old", "Firecracker v1.16.2")))
    settings = vmm.settings_of(load())
    assert settings.devices == Devices(disk_rate=1 << 20, net_rate=2 << 20, huge_pages=True)
    assert settings.uids == range(70000, 70010)
    assert [str(each.version) for each in vmm.programs(settings)] == ["1.16.1", "1.16.2"]


def test_the_jailer_beside_firecracker_comes_before_the_one_on_path(host: Host) -> None:
    settings = vmm.settings_of(load())
    folder = host.root / "path"
    folder.mkdir()
    on_path = host.program("path/jailer")
    host.monkeypatch.setenv("PATH", str(folder))
    assert settings.jailer_of(host.root / "firecracker") == on_path
    beside = host.program("jailer")
    assert settings.jailer_of(host.root / "firecracker") == beside


@pytest.mark.parametrize(("vmm_", "maker"), [("firecracker", "qemu"), ("qemu", "firecracker")])
async def test_vms_that_run_in_another_vmm_are_not_ended(host: Host, vmm_: str, maker: str) -> None:
    """A driver that does not know a running VM's process could only take it for a stray one."""
    host.set(VMM=vmm_)
    if vmm_ == "qemu":
        host.monkeypatch.delenv("HATCH_JAIL")
        host.monkeypatch.delenv("HATCH_FIRECRACKER_BIN")
    folder = host.root / "data" / "vms" / "vm-1"
    folder.mkdir(parents=True)
    (folder / "made-by").write_text(maker)
    assert (await host.choose()).driver.name == vmm_, "none runs"
    record = {"pid": os.getpid(), "start_ticks": start_ticks(os.getpid()), "boot_id": boot_id()}
    (folder / "vmm.json").write_text(json.dumps(record))
    with pytest.raises(Conflict, match=f"HATCH_VMM={maker}"):
        await host.choose()
    (folder / "vmm.json").write_text(json.dumps(record | {"start_ticks": 1}))
    assert (await host.choose()).driver.name == vmm_, "a stranger with its pid"
