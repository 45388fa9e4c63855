"""What is remembered of a trial of KVM, and what a trial believes. Scripts play VMMs."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest

from hatchvm.base.process import boot_id
from hatchvm.vmm.firecracker import probe
from hatchvm.vmm.firecracker.version import OLDEST, Installed, Version, installed
from hatchvm.vmm.trial import Trial

needs_kvm = pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="not run here: needs /dev/kvm")


def facts(**changes: object) -> str:
    return json.dumps({"vmm": "1", "kernel": platform.release(), "boot": boot_id(), "kvm_works": True} | changes)


@pytest.mark.parametrize("works", [False, True])
def test_what_was_found_here_is_believed(tmp_path: Path, works: bool) -> None:
    memory = tmp_path / "verdict"
    memory.write_text(facts(kvm_works=works))
    assert Trial(memory, ("vmm", "1")).remembered() is works


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", facts(vmm="2"), facts(kernel="6"), facts(boot="b"), facts(x=1)])
def test_what_was_found_on_another_host_or_is_damaged_is_not_believed(tmp_path: Path, text: str) -> None:
    memory = tmp_path / "verdict"
    memory.write_text(text)
    assert Trial(memory, ("vmm", "1")).remembered() is None


@needs_kvm
@pytest.mark.parametrize(
    ("script", "works"),
    [
        ("cat words; exec sleep 600", True),
        ("cat words > console; exec sleep 600", True),
        ("exit 0", False),
        ("echo 'Kernel panic'; exit 1", False),
    ],
)
def test_a_kernel_works_if_it_says_its_version(tmp_path: Path, script: str, works: bool) -> None:
    trial = Trial(tmp_path / "cache" / "verdict", ("vmm", "1"))
    assert trial.hold(["/bin/sh", "-c", script], {"words": "[0.0] Linux version 6.1"}) is works
    assert trial.remembered() is works


@needs_kvm
async def test_a_firecracker_is_given_a_kernel_and_is_tried_once(tmp_path: Path) -> None:
    program = tmp_path / "firecracker"
    program.write_text(f"#!/bin/sh\ncat $3 >> {tmp_path}/given\necho Linux version\n")
    program.chmod(0o755)
    played = Installed(program, OLDEST, Version(10, 0, 0))
    memory = tmp_path / "verdict"
    for _ in range(2):
        assert await probe.works(played, Path("/images/kernel"), memory) is True
    given = json.loads((tmp_path / "given").read_text())
    assert given["boot-source"]["kernel_image_path"] == "/images/kernel"
    assert given["boot-source"]["boot_args"].endswith("reboot=k")


@pytest.mark.skipif("HATCH_FIRECRACKER_BIN" not in os.environ, reason="not run here: HATCH_FIRECRACKER_BIN is not set")
@needs_kvm
async def test_a_real_firecracker_finds_that_what_is_no_kernel_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"no kernel" * 1000)
    found = installed(os.environ["HATCH_FIRECRACKER_BIN"])
    assert await probe.works(found, tmp_path / "kernel", tmp_path / "verdict") is False
