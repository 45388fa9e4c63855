"""What the doctor says about Firecracker. Scripts play the programs; the trial's verdict is given."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hatchvm.domain.image import TINY, Boot, Image
from hatchvm.images import builtin
from hatchvm.server import firecracker_doctor
from hatchvm.server.config import load
from hatchvm.server.finding import Finding
from hatchvm.vmm.firecracker import probe

Set = Callable[..., None]


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Set:
    """A host without Firecracker. `host(NAME=value)` sets a variable, `host(works=…)` the verdict of the trial."""
    for name in [name for name in os.environ if name.startswith("HATCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", str(tmp_path))

    def put(*, works: bool = True, tiny: bool = True, **values: str) -> None:
        async def verdict(*_: object) -> bool:
            return works

        boot = Boot(kernel=Path("/k"), initrd=None, rootfs=None, rootfs_format="raw", boot_args="")
        when = datetime(2026, 1, 1, tzinfo=UTC)
        image = Image(id="img-1", name=TINY, boot=boot, digest="d", size_bytes=1, created_at=when)
        monkeypatch.setattr(probe, "check", lambda: None)
        monkeypatch.setattr(probe, "works", verdict)
        monkeypatch.setattr(builtin, "find", lambda name, cache: image if tiny else None)
        for name, value in values.items():
            monkeypatch.setenv(f"HATCH_{name}", value)

    put()
    for name in ("_SWAPS", "_KSM", "_SMT", "_POOL"):
        monkeypatch.setattr(firecracker_doctor, name, tmp_path / name)
    return put


def install(folder: Path, version: str = "Firecracker v1.16.1") -> None:
    program = folder / "firecracker"
    program.write_text(f"#!/bin/sh\ncase $1 in --version) echo '{version}';; *) echo v10.0.0;; esac\n")
    program.chmod(0o755)


async def last(*, kvm: bool = True) -> Finding:
    return (await firecracker_doctor.examine(load(), kvm=kvm))[-1]


@pytest.mark.parametrize("older", [False, True])
async def test_with_kvm_the_last_words_are_how_to_get_a_firecracker(tmp_path: Path, older: bool) -> None:
    if older:
        install(tmp_path, "Firecracker v1.15.0")
    found = await last()
    assert ("is too old" if older else "is not installed") in found.found
    assert "the kernels of the images tiny and debian boot in it" in found.found
    url = "https://github.com/firecracker-microvm/firecracker/releases/download/v1.16.1/firecracker-v1.16.1-x86_64.tgz"
    assert found.mend.splitlines()[1:-1] == [
        f"curl -fLO {url}",
        f"curl -fLO {url}.sha256.txt",
        "sha256sum -c firecracker-v1.16.1-x86_64.tgz.sha256.txt",
        "tar -xzf firecracker-v1.16.1-x86_64.tgz",
        "install -m 755 release-v1.16.1-x86_64/firecracker-v1.16.1-x86_64 /usr/local/bin/firecracker",
        "install -m 755 release-v1.16.1-x86_64/jailer-v1.16.1-x86_64 /usr/local/bin/jailer",
    ]


async def test_without_kvm_nobody_is_sent_to_get_one() -> None:
    found = await last(kvm=False)
    assert (found.verdict, found.mend) == ("ok", "")
    assert found.found.endswith("it needs KVM that starts a kernel, which is not here: QEMU is used")


async def test_one_that_runs_is_used_on_the_bridge(tmp_path: Path, host: Set) -> None:
    install(tmp_path)
    host(JAIL="off")
    found = await last()
    assert (found.verdict, found.mend) == ("ok", "set HATCH_NETWORK=bridge")
    assert found.found.startswith("1.16.1, without a jail")
    host(NETWORK="bridge")
    assert (await last()).mend == ""


async def test_what_keeps_it_from_running_is_told(tmp_path: Path, host: Set) -> None:
    install(tmp_path)
    assert "jailer is not installed" in (await last()).found
    host(JAIL="off", works=False)
    assert "no kernel starts in it here (tried)" in (await last()).found
    host(tiny=False)
    assert (await last()).mend.startswith("hatchvm image build tiny")


async def test_no_vm_can_run_where_it_was_demanded_and_is_not(host: Set) -> None:
    assert (await last()).verdict == "ok"
    host(VMM="firecracker", NETWORK="bridge")
    assert (await last()).verdict == "fail"


async def test_qemu_that_was_asked_for_is_not_talked_out_of(host: Set) -> None:
    host(VMM="qemu")
    assert (await last()).mend == ""


async def test_what_its_host_should_not_do_is_told_to_those_who_use_it(tmp_path: Path, host: Set) -> None:
    install(tmp_path)
    host(JAIL="off")
    (tmp_path / "_SWAPS").write_text("Filename Type Size\n/dev/sda2 partition 1\n")
    (tmp_path / "_KSM").write_text("1\n")
    (tmp_path / "_SMT").write_text("1\n")
    (tmp_path / "_POOL").write_text("0\n")
    assert len(await firecracker_doctor.examine(load(), kvm=True)) == 1
    host(VMM="firecracker", NETWORK="bridge", HUGE_PAGES="2M")
    findings = await firecracker_doctor.examine(load(), kvm=True)
    assert [each.subject for each in findings] == ["swap", "KSM", "SMT", "huge pages", "Firecracker"]
    assert {each.verdict for each in findings[:-1]} == {"warn"}
    assert all(each.mend for each in findings[:-1])
    (tmp_path / "_SWAPS").write_text("Filename Type Size\n")
    for name in ("_KSM", "_SMT"):
        (tmp_path / name).write_text("0\n")
    (tmp_path / "_POOL").write_text("64\n")
    assert len(await firecracker_doctor.examine(load(), kvm=True)) == 1
