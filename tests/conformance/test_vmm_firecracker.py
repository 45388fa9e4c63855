"""What a real Firecracker makes of the driver: the promises of `ports/vmm.py` that need no guest with a kernel.

The guest (`testing/firecracker/counter.py`) counts in its memory, so every lost, stale or mixed page shows. It runs
wherever `/dev/kvm` runs a program at all, which is on more hosts than those whose KVM runs a stock kernel.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Final

import pytest

from hatchvm.base.clock import SystemClock
from hatchvm.base.errors import Corrupt, Unavailable, Unsupported
from hatchvm.base.paths import VMPaths
from hatchvm.base.process import start_ticks
from hatchvm.domain.image import Boot
from hatchvm.net.bridge.bridge import BridgeNetwork
from hatchvm.net.bridge.settings import Bridge
from hatchvm.node import storage, touched
from hatchvm.node.lazy import Pagers
from hatchvm.objects.directory import DirectoryStore
from hatchvm.pager import mount
from hatchvm.ports.vmm import Handle, LaunchPlan, NetPlan
from hatchvm.snapshots.engine import Facts, Files, SnapshotEngine
from hatchvm.snapshots.layout import SnapshotKeys
from hatchvm.snapshots.seal import Ring
from hatchvm.testing.firecracker import counter
from hatchvm.testing.firecracker.bridged import BridgedDriver
from hatchvm.testing.pager import faulty
from hatchvm.vmm.firecracker.box import Bare, Box
from hatchvm.vmm.firecracker.driver import FirecrackerDriver
from hatchvm.vmm.firecracker.jail import Jail
from hatchvm.vmm.firecracker.requests import Devices
from hatchvm.vmm.firecracker.version import Installed, installed

_BIN, _JAILER = os.environ.get("HATCH_FIRECRACKER_BIN"), os.environ.get("HATCH_JAILER_BIN")
pytestmark = [
    pytest.mark.skipif(_BIN is None, reason="not run here: HATCH_FIRECRACKER_BIN is not set"),
    pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="not run here: needs KVM"),
    pytest.mark.column("Firecracker (real, a counter)"),
]

MEM_MIB: Final = 64
BOXES: Final = [
    pytest.param("bare", id="bare"),
    pytest.param(
        "jail", id="jail", marks=pytest.mark.skipif(_JAILER is None, reason="not run here: HATCH_JAILER_BIN is not set")
    ),
]


def binary() -> Installed:
    assert _BIN is not None
    return installed(_BIN)


@pytest.fixture(params=BOXES)
def box(request: pytest.FixtureRequest) -> Box:
    """A jail without limits: they are tested where the host has cgroup v2."""
    return Bare() if request.param == "bare" else Jail(jailer=Path(str(_JAILER)), parent=None)


@pytest.fixture
def driver(box: Box) -> FirecrackerDriver:
    return FirecrackerDriver([binary()], box, Devices())


@pytest.fixture
async def plan(tmp_path: Path, driver: FirecrackerDriver) -> AsyncIterator[LaunchPlan]:
    """A guest that has a disk, made and not started; whatever was started is ended."""
    plan = plan_in(tmp_path, "vm-1")
    assert plan.boot.rootfs is not None
    await driver.create_disk(plan.boot.rootfs, "raw", plan.paths.disk)
    yield plan
    await driver.kill_stray(plan.paths)


def plan_in(folder: Path, vm_id: str, *, resets_at: int = 0x7FFFFFFF) -> LaunchPlan:
    paths = VMPaths(folder / "vms" / vm_id)
    paths.root.mkdir(parents=True)
    root = folder / "root.img"
    root.write_bytes(bytes(1 << 20))
    kernel = counter.write(folder / "kernel", resets_at=resets_at)
    kernel.chmod(0o644)
    return LaunchPlan(
        vm_id=vm_id,
        paths=paths,
        boot=Boot(kernel=kernel, initrd=None, rootfs=root, rootfs_format="raw", boot_args=""),
        boot_args="",
        image_digest="d",
        vcpu_count=1,
        mem_mib=MEM_MIB,
        net=None,
        has_seed=False,
    )


def pages_of(plan: LaunchPlan) -> list[bytes]:
    memory = plan.paths.memory.read_bytes()
    return [memory[start : start + 4096] for start in range(0, len(memory), 4096)]


async def save(handle: Handle) -> None:
    await handle.pause()
    await handle.capture()
    await handle.quit()


async def counts_on(handle: Handle, paths: VMPaths, than: int) -> int:
    """Let it run until it has counted beyond `than`; it is left paused and captured."""
    for _ in range(1000):
        await handle.resume()
        await asyncio.sleep(0.01)
        await handle.pause()
        await handle.capture()
        assert counter.sound(paths.memory)
        if (count := counter.counted(paths.memory)) > than:
            return count
    raise AssertionError("the guest does not run")


@pytest.mark.feature("create")
async def test_a_guest_boots(driver: FirecrackerDriver, plan: LaunchPlan) -> None:
    handle = await driver.launch(plan)
    assert await handle.running()
    assert await counts_on(handle, plan.paths, 0)
    await handle.kill()


@pytest.mark.feature("suspend")
@pytest.mark.feature("wake")
async def test_a_guest_goes_on_where_it_was(driver: FirecrackerDriver, plan: LaunchPlan) -> None:
    handle = await driver.launch(plan)
    count = 0
    for _ in range(4):
        count = await counts_on(handle, plan.paths, count)
        await handle.quit()
        handle = await driver.restore(plan)
        assert not await handle.running()
        assert counter.counted(plan.paths.memory) == count
        await handle.resume()
        assert await handle.running()
    await handle.kill()


@pytest.mark.feature("suspend")
async def test_a_captured_guest_may_run_on(driver: FirecrackerDriver, plan: LaunchPlan) -> None:
    """What was captured before it ran on is not lost to the next capture, whether it was booted or restored."""
    handle = await driver.launch(plan)
    for _ in range(2):
        count = await counts_on(handle, plan.paths, 0)
        assert await counts_on(handle, plan.paths, count) > count
        await handle.quit()
        handle = await driver.restore(plan)
    await handle.kill()


@pytest.mark.feature("diff")
async def test_a_capture_tells_what_the_guest_wrote(driver: FirecrackerDriver, plan: LaunchPlan) -> None:
    handle = await driver.launch(plan)
    await counts_on(handle, plan.paths, 0)
    await handle.quit()
    before = pages_of(plan)
    handle = await driver.restore(plan)
    await handle.resume()
    await asyncio.sleep(0.05)
    await handle.pause()
    pages = await handle.capture()
    changed = {number for number, (old, new) in enumerate(zip(before, pages_of(plan), strict=True)) if old != new}
    assert changed
    assert pages is not None
    assert changed <= set(pages.tolist())
    assert len(pages) < len(changed) + 64, "only what it wrote"
    assert counter.sound(plan.paths.memory)
    assert plan.paths.changes.stat().st_blocks == 0
    await handle.kill()


@pytest.mark.feature("wake")
async def test_a_pair_is_not_spent_until_the_guest_runs(driver: FirecrackerDriver, plan: LaunchPlan) -> None:
    handle = await driver.launch(plan)
    count = await counts_on(handle, plan.paths, 0)
    await handle.quit()
    for _ in range(2):
        handle = await driver.restore(plan)
        await handle.kill()
    assert counter.counted(plan.paths.memory) == count
    handle = await driver.restore(plan)
    assert await counts_on(handle, plan.paths, count) > count
    await handle.kill()


@pytest.mark.feature("adopt")
async def test_a_later_driver_takes_the_process_back(driver: FirecrackerDriver, box: Box, plan: LaunchPlan) -> None:
    handle = await driver.launch(plan)
    count = await counts_on(handle, plan.paths, 0)
    later = FirecrackerDriver([binary()], box, Devices())
    adopted = await later.adopt(plan)
    assert adopted is not None
    assert adopted.pid == handle.pid
    assert adopted.version == handle.version == (await driver.stamp(plan)).vmm_version
    assert await counts_on(adopted, plan.paths, count) > count
    await adopted.quit()
    assert start_ticks(handle.pid) is None
    await handle.wait()


@pytest.mark.feature("adopt")
async def test_a_process_whose_record_was_lost_is_still_found(driver: FirecrackerDriver, plan: LaunchPlan) -> None:
    handle = await driver.launch(plan)
    plan.paths.process.unlink()
    adopted = await driver.adopt(plan)
    assert adopted is not None
    assert adopted.pid == handle.pid
    await adopted.kill()
    await handle.wait()


@pytest.mark.feature("kill")
async def test_ends_are_told_apart(driver: FirecrackerDriver, tmp_path: Path, plan: LaunchPlan) -> None:
    handle = await driver.launch(plan)
    os.kill(handle.pid, signal.SIGKILL)
    ended = await handle.wait()
    assert not ended.by_guest
    assert "killed by signal 9" in ended.reason
    for call in (handle.pause, handle.resume, handle.capture, handle.running, handle.power_button):
        with pytest.raises(Unavailable):
            await call()
    await handle.kill()
    await handle.quit()
    resets = replace(plan, boot=replace(plan.boot, kernel=counter.write(tmp_path / "resets", resets_at=1000)))
    (tmp_path / "resets").chmod(0o644)
    handle = await driver.launch(resets)
    assert (await handle.wait()).by_guest


@pytest.mark.feature("kill")
async def test_a_stray_process_is_ended_and_its_box_is_gone(driver: FirecrackerDriver, plan: LaunchPlan) -> None:
    handle = await driver.launch(plan)
    assert await driver.kill_stray(plan.paths)
    assert start_ticks(handle.pid) is None
    await handle.wait()
    assert not plan.paths.box.exists()
    assert not await driver.kill_stray(plan.paths)


@pytest.mark.feature("snapshot")
async def test_damaged_state_is_corrupt_and_leaves_no_process(driver: FirecrackerDriver, plan: LaunchPlan) -> None:
    handle = await driver.launch(plan)
    await counts_on(handle, plan.paths, 0)
    await handle.quit()
    state = plan.paths.state.read_bytes()
    for damaged in (bytes(len(state)), state[:100], state[:-8] + bytes(8)):
        plan.paths.state.write_bytes(damaged)
        with pytest.raises(Corrupt):
            await driver.restore(plan)
        assert not await driver.kill_stray(plan.paths)
    plan.paths.state.write_bytes(state)
    os.truncate(plan.paths.memory, MEM_MIB << 19)
    with pytest.raises(Corrupt):
        await driver.restore(plan)


@pytest.mark.feature("snapshot")
async def test_a_state_says_who_wrote_it(driver: FirecrackerDriver, box: Box, plan: LaunchPlan) -> None:
    """Another version is looked for only where it is needed, and one that is not here is named."""
    here = binary()
    stamp = await driver.stamp(plan)
    assert str(here.version) in stamp.vmm_version
    older = replace(stamp, vmm_version="1.16.0 (v10.0.0)")
    assert older.difference(await driver.stamp(plan, older)) is None, "its format is the same"
    other = replace(stamp, vmm_version="1.13.1 (v8.0.0)")
    assert "1.13.1" in str(other.difference(await driver.stamp(plan, other)))
    handle = await driver.launch(plan)
    await save(handle)
    with pytest.raises(Unsupported, match="HATCH_FIRECRACKER_BINS"):
        await driver.restore(replace(plan, written_by=other.vmm_version))


@pytest.mark.feature("restore elsewhere")
async def test_a_saved_guest_runs_on_under_another_name(
    driver: FirecrackerDriver, tmp_path: Path, plan: LaunchPlan
) -> None:
    handle = await driver.launch(plan)
    count = await counts_on(handle, plan.paths, 0)
    await handle.quit()
    copy = replace(plan, vm_id="vm-2", paths=VMPaths(plan.paths.root.parent / "vm-2"))
    copy.paths.root.mkdir()
    for name in ("memory", "state", "disk"):
        shutil.copy(plan.paths.root / name, copy.paths.root / name)
    both = [await driver.restore(plan), await driver.restore(copy)]
    assert await counts_on(both[0], plan.paths, count) > count
    assert await counts_on(both[1], copy.paths, count) > count
    for each in both:
        await each.kill()


@pytest.mark.feature("disk-only boot")
async def test_a_guest_whose_memory_was_forgotten_boots_again(driver: FirecrackerDriver, plan: LaunchPlan) -> None:
    handle = await driver.launch(plan)
    await counts_on(handle, plan.paths, 1000)
    await handle.quit()
    handle = await driver.launch(plan)
    assert not plan.paths.changes.exists()
    assert await counts_on(handle, plan.paths, 0)
    await handle.kill()


@pytest.mark.feature("stats")
async def test_the_host_sees_which_memory_a_guest_uses(driver: FirecrackerDriver, plan: LaunchPlan) -> None:
    handle = await driver.launch(plan)
    await counts_on(handle, plan.paths, 0)
    await handle.quit()
    handle = await driver.restore(plan)
    await handle.resume()
    while counter.COUNT_AT // 4096 not in touched.resident(handle.pid, plan.paths).tolist():
        await asyncio.sleep(0.01)
    await handle.kill()


@pytest.mark.feature("network")
@pytest.mark.skipif(os.geteuid() != 0, reason="not run here: a bridge needs root")
async def test_its_card_is_on_the_bridge_as_long_as_it_lives(driver: FirecrackerDriver, plan: LaunchPlan) -> None:
    """Plugged in before the guest runs, at a boot and at a wake."""
    space = f"hatch-{uuid.uuid4().hex[:8]}"
    network = BridgeNetwork(
        Bridge(name="conf0", cidr=IPv4Interface("198.18.0.1/24"), netns=space, run=Path("/run/hatchvm"))
    )
    await network.open()
    bridged = BridgedDriver(driver, network)
    card = NetPlan(guest_ip="198.18.0.10", guest_mac="52:54:00:12:34:56", tap_name="vm-1")
    on_it = replace(plan, net=card)
    try:
        handle = await bridged.launch(on_it)
        assert ports(space) == {"vm-1"}
        await counts_on(handle, plan.paths, 0)
        await handle.quit()
        assert ports(space) == set()
        handle = await bridged.restore(on_it)
        assert ports(space) == {"vm-1"}
        await counts_on(handle, plan.paths, 0)
        await handle.kill()
        assert ports(space) == set()
    finally:
        await driver.kill_stray(plan.paths)
        await network.remove()


def ports(space: str) -> set[str]:
    told = subprocess.run(["ip", "-n", space, "-j", "link", "show", "master", "conf0"], check=True, capture_output=True)
    return {link["ifname"] for link in json.loads(told.stdout or "[]")}


@pytest.mark.feature("restore elsewhere")
@pytest.mark.skipif(mount.probe() is not None, reason="not run here: needs FUSE")
async def test_a_guest_runs_on_memory_that_is_still_in_the_store(
    driver: FirecrackerDriver, plan: LaunchPlan, tmp_path: Path
) -> None:
    """Its page faults are answered by the pager, its disk is served by FUSE; what it wrote is joined with the rest."""
    handle = await driver.launch(plan)
    count = await counts_on(handle, plan.paths, 0)
    stamp = await driver.stamp(plan)
    await handle.quit()
    engine = SnapshotEngine(DirectoryStore(tmp_path / "objects"), tmp_path / "packs", SystemClock())
    keys = SnapshotKeys("vm-000000000001", "snap-000000000001")
    paths = plan.paths
    files = Files(memory=paths.memory, state=paths.state, disk=paths.disk)
    await engine.write(keys, files, Facts(stamp=stamp, vm_config="{}", created_at=SystemClock().now()))
    manifest, data = await engine.open(keys)
    storage._hollow(paths, manifest)
    pagers = Pagers(lazy=True, ring=Ring())
    pager = await pagers.start(paths, keys, await engine.locate(manifest), data, mounted=True, faults=True)
    try:
        handle = await driver.restore(replace(plan, lazy=True))
        await handle.resume()
        assert await handle.running()
        await pager.settle()
        assert await counts_on(handle, paths, count) > count
        await handle.kill()
    finally:
        await driver.kill_stray(paths)
        await pager.end()
        pagers.close()
    handle = await driver.restore(plan)
    assert await counts_on(handle, paths, count) > count
    await handle.kill()


def huge_pages_here() -> int:
    free = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("HugePages_Free"))
    return int(free.split()[1])


@pytest.mark.skipif(huge_pages_here() < MEM_MIB // 2, reason="not run here: needs huge pages that are set aside")
@pytest.mark.skipif(faulty.trouble() is not None, reason="not run here: needs userfaultfd")
async def test_a_guest_in_huge_pages_gets_its_memory_by_faults(box: Box, plan: LaunchPlan) -> None:
    driver, paths = FirecrackerDriver([binary()], box, Devices(huge_pages=True)), plan.paths
    assert driver.memory_by_faults
    handle = await driver.launch(plan)
    count = await counts_on(handle, paths, 0)
    await handle.quit()
    pagers = Pagers(lazy=False, ring=Ring())
    for _ in range(3):
        pager = await pagers.start_whole(paths)
        try:
            handle = await driver.restore(plan)
            for _ in range(2):
                counted, count = count, await counts_on(handle, paths, count)
                assert count > counted
            await pager.settle()
            assert await pager.wrong() is None
            await handle.quit()
        finally:
            await driver.kill_stray(paths)
            await pager.end()
