"""Whether KVM is tried: only when it matters, once, and again on a host that changed. QEMU is a script that fails."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Final, Literal

import pytest

from hatchvm.base.errors import Unsupported
from hatchvm.base.process import boot_id
from hatchvm.domain.image import Boot
from hatchvm.vmm.qemu.accel import Accelerator

VERSION: Final = "7.2.9 (Somebody's build)"
BOOT: Final = Boot(kernel=Path("/k"), initrd=None, rootfs=None, rootfs_format="raw", boot_args="")


class Host:
    """A host with such a QEMU, and what is remembered of it."""

    def __init__(self, root: Path) -> None:
        self.memory = root / "cache" / "accel.json"
        self.qemu = root / "qemu"
        self.qemu.write_text(f'#!/bin/sh\necho "$1" >> {root}/calls\necho "QEMU emulator version {VERSION}"\n')
        self.qemu.chmod(0o755)
        self._calls = root / "calls"

    def accelerator(self, mode: Literal["auto", "kvm", "tcg"]) -> Accelerator:
        return Accelerator(mode, memory=self.memory, binary=str(self.qemu))

    def remember(self, **changes: str | bool) -> None:
        facts = {"qemu": VERSION, "kernel": platform.release(), "boot": boot_id(), "kvm_works": True}
        self.memory.parent.mkdir(exist_ok=True)
        self.memory.write_text(json.dumps(facts | changes))

    def calls(self) -> list[str]:
        return self._calls.read_text().split()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


async def test_emulation_that_was_asked_for_needs_no_trial(host: Host) -> None:
    machine = await host.accelerator("tcg").machine(BOOT)
    assert (machine.accel, machine.cpu, machine.version) == ("tcg", "max", VERSION)
    assert machine.tsc_khz > 0
    assert host.calls() == ["--version"]
    assert not host.memory.exists()


async def test_what_was_found_on_this_very_host_needs_no_trial(host: Host) -> None:
    host.remember()
    accelerator = host.accelerator("kvm")
    assert (await accelerator.machine(None)).accel == "kvm"
    assert (await accelerator.machine(BOOT)).accel == "kvm"
    assert host.calls() == ["--version"]


@pytest.mark.parametrize("changed", ["qemu", "kernel", "boot"])
async def test_a_host_that_changed_is_tried_again_and_the_new_verdict_is_kept(host: Host, changed: str) -> None:
    host.remember(**{changed: "another"})
    for _ in range(2):
        with pytest.raises(Unsupported, match="no kernel starts under KVM here"):
            await host.accelerator("kvm").machine(BOOT)
    facts = json.loads(host.memory.read_bytes())
    assert facts == {"qemu": VERSION, "kernel": platform.release(), "boot": boot_id(), "kvm_works": False}


async def test_without_a_kernel_to_try_nothing_is_decided(host: Host) -> None:
    accelerator = host.accelerator("kvm")
    assert (await accelerator.machine(None)).accel == "tcg"
    assert not host.memory.exists()
    with pytest.raises(Unsupported):
        await accelerator.machine(BOOT)


async def test_a_qemu_that_is_missing_or_does_not_run(host: Host, tmp_path: Path) -> None:
    host.qemu.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(Unsupported, match="does not run"):
        await host.accelerator("tcg").machine(None)
    with pytest.raises(Unsupported, match="is not installed"):
        await Accelerator("tcg", memory=host.memory, binary=str(tmp_path / "nothing")).machine(None)
