"""How a jailed Firecracker is started, and what is asked of the host before."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.base.errors import Unsupported
from hatchvm.base.paths import VMPaths
from hatchvm.vmm.firecracker import jail
from hatchvm.vmm.firecracker.box import Bare, Limits
from hatchvm.vmm.firecracker.jail import Jail, cgroup

LIMITS = Limits(vcpu_count=2, mem_mib=512)


@pytest.fixture
def paths(tmp_path: Path) -> VMPaths:
    paths = VMPaths(tmp_path / "vms" / "vm-0a1b")
    (paths.jail / "root").mkdir(parents=True)
    paths.box.symlink_to("jail/root")
    return paths


@pytest.fixture
def binaries(tmp_path: Path) -> tuple[Path, Path]:
    """A jailer and a Firecracker of one release."""
    return program(tmp_path / "jailer", "Jailer v1.16.1"), program(tmp_path / "firecracker", "Firecracker v1.16.1")


def program(path: Path, says: str) -> Path:
    path.write_text(f"#!/bin/sh\nprintf '%s\\n\\nand a line of its log v9\\n' '{says}'\n")
    path.chmod(0o755)
    return path


def hierarchy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, controllers: str | None) -> None:
    """A host that has cgroup v2 with these controllers, or none."""
    top = tmp_path / "unified"
    top.mkdir()
    lines = ["proc /proc proc rw 0 0", "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0"]
    if controllers is not None:
        (top / "cgroup.controllers").write_text(controllers + "\n")
        lines.append(f"cgroup2 {top} cgroup2 rw 0 0")
    (tmp_path / "mounts").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(jail, "_MOUNTS", tmp_path / "mounts")
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def test_the_process_is_started_by_the_jailer_and_stays_that_process(paths: VMPaths, tmp_path: Path) -> None:
    box = Jail(jailer=tmp_path / "jailer", uids=range(7, 8))
    argv, cwd = box.command(paths, tmp_path / "firecracker", ["--api-sock", "api.sock"], LIMITS)
    assert cwd == paths.jail / "root"
    assert argv == [
        *[
            f"{tmp_path}/jailer",
            "--id",
            "vm-0a1b",
            "--exec-file",
            f"{tmp_path}/firecracker",
            "--uid",
            "7",
            "--gid",
            "7",
        ],
        *["--chroot-base-dir", str(paths.jail), "--cgroup-version", "2", "--parent-cgroup", "hatchvm"],
        *["--cgroup", "cpu.max=300000 100000", "--cgroup", "memory.max=612368384", "--cgroup", "pids.max=18"],
        *["--resource-limit", "no-file=2048", "--", "--api-sock", "api.sock"],
    ]


def test_without_limits_nothing_is_said_of_cgroups(paths: VMPaths, tmp_path: Path) -> None:
    argv, _ = Jail(jailer=tmp_path / "jailer", parent=None).command(paths, tmp_path / "firecracker", [], LIMITS)
    assert not [argument for argument in argv if "cgroup" in argument]


def test_without_a_jail_the_process_is_firecracker_itself(paths: VMPaths, tmp_path: Path) -> None:
    argv, cwd = Bare().command(paths, tmp_path / "firecracker", ["--api-sock", "api.sock"], LIMITS)
    assert argv == [f"{tmp_path}/firecracker", "--id", "vm-0a1b", "--api-sock", "api.sock"] and cwd == paths.box


@given(st.integers(1, 32), st.integers(1, 1 << 20))
def test_limits_leave_room_for_what_is_honest(vcpu_count: int, mem_mib: int) -> None:
    files = cgroup(Limits(vcpu_count=vcpu_count, mem_mib=mem_mib))
    quota, period = map(int, files["cpu.max"].split())
    page_tables = 2 * (mem_mib << 20) // 512
    assert quota == (vcpu_count + 1) * period
    assert (
        (mem_mib << 20) + page_tables + (32 << 20) < int(files["memory.max"]) <= (mem_mib << 20) * 65 // 64 + (64 << 20)
    )
    assert int(files["pids.max"]) > vcpu_count + 2


async def test_a_host_that_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, binaries: tuple[Path, Path]) -> None:
    hierarchy(tmp_path, monkeypatch, "cpuset cpu io memory pids")
    jailer, firecracker = binaries
    assert await Jail(jailer=jailer).check(firecracker) == "jailed: users 1900000000 to 1900099999, cgroup hatchvm"


@pytest.mark.parametrize(
    ("controllers", "missing"), [(None, "cpu, memory, pids"), ("", "cpu, memory, pids"), ("cpu memory", "pids")]
)
async def test_a_host_without_limits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    binaries: tuple[Path, Path],
    controllers: str | None,
    missing: str,
) -> None:
    hierarchy(tmp_path, monkeypatch, controllers)
    jailer, firecracker = binaries
    with pytest.raises(Unsupported, match=f"cgroup v2 with {missing}; .* or set HATCH_JAIL=off for development$"):
        await Jail(jailer=jailer).check(firecracker)


async def test_a_jailer_of_another_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hierarchy(tmp_path, monkeypatch, "cpu memory pids")
    jailer = program(tmp_path / "jailer", "Jailer v1.16.0")
    firecracker = program(tmp_path / "firecracker", "Firecracker v1.16.1")
    with pytest.raises(Unsupported, match="install both from one release"):
        await Jail(jailer=jailer).check(firecracker)


async def test_no_jailer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, binaries: tuple[Path, Path]) -> None:
    hierarchy(tmp_path, monkeypatch, "cpu memory pids")
    with pytest.raises(Unsupported, match="nowhere does not run"):
        await Jail(jailer=tmp_path / "nowhere").check(binaries[1])


async def test_not_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Unsupported, match="a jail needs root; run Hatch as root, or set HATCH_JAIL=off"):
        await Jail(jailer=tmp_path / "jailer").check(tmp_path / "firecracker")


def test_the_cgroup_of_a_vm_goes_with_its_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: VMPaths) -> None:
    hierarchy(tmp_path, monkeypatch, "cpu memory pids")
    group = tmp_path / "unified" / "hatchvm" / "vm-0a1b"
    group.mkdir(parents=True)
    for _ in range(2):
        Jail(jailer=tmp_path / "jailer").clear(paths)
        assert not group.exists() and group.parent.exists()
