"""What a kernel is told under Firecracker."""

from __future__ import annotations

from pathlib import Path

import pytest

from hatchvm.base.paths import VMPaths
from hatchvm.domain.image import Boot
from hatchvm.images import recipe
from hatchvm.images.debian12 import recipe as debian12
from hatchvm.ports.vmm import LaunchPlan
from hatchvm.vmm.firecracker.bootargs import boot_args


def told(given: str) -> str:
    boot = Boot(kernel=Path("/k"), initrd=None, rootfs=None, rootfs_format="raw", boot_args="the image's")
    plan = LaunchPlan(
        vm_id="vm-000000000001",
        paths=VMPaths(Path("/data")),
        boot=boot,
        boot_args=given,
        image_digest="d",
        vcpu_count=1,
        mem_mib=64,
        net=None,
        has_seed=False,
    )
    return boot_args(plan)


@pytest.mark.parametrize("given", [recipe.BOOT_ARGS, debian12.BOOT_ARGS, "", "quiet  reboot=a clocksource=tsc"])
def test_ours_come_last_so_that_the_kernel_believes_them(given: str) -> None:
    words = told(given).split()
    assert words[: len(given.split())] == given.split()
    last = {word.partition("=")[0]: word for word in words}
    assert last["reboot"] == "reboot=k"
    assert last["clocksource"] == "clocksource=kvm-clock"
    assert "hatch.vmm=firecracker" in words


def test_what_is_for_the_first_program_stays_its_own() -> None:
    kernel, _, init = told("quiet -- single -- x").partition(" -- ")
    assert kernel.split()[0] == "quiet"
    assert kernel.endswith(" hatch.vmm=firecracker")
    assert init == "single -- x"
