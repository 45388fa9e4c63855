"""What can go wrong with a Firecracker, at every request: nothing is left behind, nothing is lost."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hatchvm.base import tasks
from hatchvm.base.errors import Corrupt, Exhausted, HatchError, Internal, Unavailable, Unsupported
from hatchvm.base.paths import VMPaths
from hatchvm.domain.image import Boot
from hatchvm.ports.vmm import LaunchPlan
from hatchvm.testing.firecracker import binary as standin
from hatchvm.testing.firecracker import counter
from hatchvm.testing.firecracker.binary import Fault
from hatchvm.testing.firecracker.record import violations
from hatchvm.vmm.firecracker import requests
from hatchvm.vmm.firecracker.box import Bare, Entry
from hatchvm.vmm.firecracker.driver import FirecrackerDriver
from hatchvm.vmm.firecracker.handle import Firecracker
from hatchvm.vmm.firecracker.requests import Devices
from hatchvm.vmm.firecracker.version import Installed, installed

BOOT = (
    "PUT /serial",
    "PUT /machine-config",
    "PUT /boot-source",
    "PUT /drives/{drive_id}",
    "PUT /vsock",
    "PUT /entropy",
    "PUT /balloon",
    "PUT /actions InstanceStart",
)
LOAD = ("PUT /serial", "PUT /snapshot/load")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return installed(str(standin.binary(tmp_path_factory.mktemp("standin"))))


@pytest.fixture
def folder(played: Installed) -> Path:
    return played.path.parent


@pytest.fixture
def driver(played: Installed) -> FirecrackerDriver:
    return FirecrackerDriver([played], Bare(), Devices())


@pytest.fixture
async def plan(tmp_path: Path, driver: FirecrackerDriver, folder: Path) -> AsyncIterator[LaunchPlan]:
    """A guest with a disk, not started. At the end nothing runs, and no guest has found what it had not left."""
    paths = VMPaths(tmp_path / "vm-1")
    paths.root.mkdir()
    paths.disk.write_bytes(bytes(1 << 20))
    boot = Boot(
        kernel=counter.write(tmp_path / "kernel"),
        initrd=None,
        rootfs=tmp_path / "root",
        rootfs_format="raw",
        boot_args="",
    )
    yield LaunchPlan(
        vm_id="vm-1",
        paths=paths,
        boot=boot,
        boot_args="",
        image_digest="d",
        vcpu_count=1,
        mem_mib=16,
        net=None,
        has_seed=False,
    )
    standin.put_faults(folder, {})
    assert not await driver.kill_stray(paths), "a process was left"
    assert not paths.box.exists()
    assert violations(folder / standin.RECORD) == []


async def saved(driver: FirecrackerDriver, plan: LaunchPlan) -> None:
    handle = await driver.launch(plan)
    await handle.pause()
    await handle.capture()
    await handle.quit()


async def runs_on(driver: FirecrackerDriver, plan: LaunchPlan) -> None:
    """The saved guest finds all that it left: it looks when it is resumed."""
    handle = await driver.restore(plan)
    await handle.resume()
    assert await handle.running()
    await handle.kill()


@pytest.mark.parametrize(
    ("call", "do"),
    [
        *((call, "refuse") for call in BOOT),
        *((call, do) for call in ("PUT /boot-source", "PUT /actions InstanceStart") for do in ("die", "die after")),
    ],
)
async def test_a_start_that_fails_leaves_nothing(
    driver: FirecrackerDriver, plan: LaunchPlan, folder: Path, call: str, do: str
) -> None:
    standin.put_faults(folder, {call: Fault(do)})  # type: ignore[arg-type]
    with pytest.raises(Unsupported):
        await driver.launch(plan)
    assert await driver.adopt(plan) is None
    standin.put_faults(folder, {})
    await (await driver.launch(plan)).kill()


@pytest.mark.parametrize("do", ["refuse", "die", "die after"])
@pytest.mark.parametrize("call", LOAD)
async def test_a_wake_that_fails_leaves_the_pair(
    driver: FirecrackerDriver, plan: LaunchPlan, folder: Path, call: str, do: str
) -> None:
    await saved(driver, plan)
    standin.put_faults(folder, {call: Fault(do)})  # type: ignore[arg-type]
    with pytest.raises((Corrupt, Unsupported)):
        await driver.restore(plan)
    standin.put_faults(folder, {})
    await runs_on(driver, plan)


@pytest.mark.parametrize(
    ("call", "before"),
    [("PUT /boot-source", "/machine-config"), ("PUT /actions InstanceStart", "/balloon")],
)
async def test_a_start_that_is_given_up_leaves_nothing(
    driver: FirecrackerDriver, plan: LaunchPlan, folder: Path, call: str, before: str
) -> None:
    standin.put_faults(folder, {call: Fault("hang")})
    known = len(asked(folder, before))
    starting = tasks.spawn(driver.launch(plan), name="start")
    while len(asked(folder, before)) == known:
        await asyncio.sleep(0.01)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert await driver.adopt(plan) is None


def asked(folder: Path, path: str) -> list[str]:
    """What any process was asked under this path."""
    record = folder / standin.RECORD
    return [line for line in record.read_text().splitlines() if f'"{path}"' in line] if record.exists() else []


async def test_a_start_that_is_given_up_while_it_begins_leaves_nothing(played: Installed, plan: LaunchPlan) -> None:
    class Slow(Bare):
        entered, go_on = threading.Event(), threading.Event()

        def furnish(self, paths: VMPaths, binary: Path, entries: Sequence[Entry]) -> None:
            super().furnish(paths, binary, entries)
            self.entered.set()
            self.go_on.wait()

    slow = Slow()
    driver = FirecrackerDriver([played], slow, Devices())
    starting = tasks.spawn(driver.launch(plan), name="start")
    await asyncio.to_thread(slow.entered.wait)
    starting.cancel()
    slow.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert await driver.adopt(plan) is None


async def paused(driver: FirecrackerDriver, plan: LaunchPlan) -> Firecracker:
    """A restored guest that has run, paused."""
    await saved(driver, plan)
    handle = await driver.restore(plan)
    await handle.resume()
    await handle.pause()
    return handle


@pytest.mark.parametrize(("do", "error"), [("full", Exhausted), ("refuse", Internal)])
async def test_a_capture_that_fails_can_be_taken_again(
    driver: FirecrackerDriver, plan: LaunchPlan, folder: Path, do: str, error: type[HatchError]
) -> None:
    handle = await paused(driver, plan)
    state = plan.paths.state.read_bytes()
    standin.put_faults(folder, {"PUT /snapshot/create": Fault(do)})  # type: ignore[arg-type]
    with pytest.raises(error):
        await handle.capture()
    assert plan.paths.state.read_bytes() == state
    standin.put_faults(folder, {})
    await handle.resume()
    assert await handle.running()
    await handle.pause()
    pages = await handle.capture()
    assert pages is not None
    assert len(pages)
    await handle.quit()
    await runs_on(driver, plan)


@pytest.mark.parametrize("do", ["die", "die after"])
async def test_a_vmm_that_dies_while_it_captures_is_gone(
    driver: FirecrackerDriver, plan: LaunchPlan, folder: Path, do: str
) -> None:
    handle = await paused(driver, plan)
    standin.put_faults(folder, {"PUT /snapshot/create": Fault(do)})  # type: ignore[arg-type]
    with pytest.raises(Unavailable):
        await handle.capture()
    assert not (await handle.wait()).by_guest


async def test_changes_that_were_captured_and_not_joined_are_joined_by_the_next(
    driver: FirecrackerDriver, plan: LaunchPlan
) -> None:
    """As after a daemon that was killed between the two."""
    handle = await paused(driver, plan)
    await handle._api.send(requests.capture(Devices()))
    assert plan.paths.changes.stat().st_size
    adopted = await driver.adopt(plan)
    assert adopted is not None
    await adopted.resume()
    await adopted.pause()
    await adopted.capture()
    await adopted.quit()
    await handle.wait()
    await runs_on(driver, plan)


@pytest.mark.parametrize("again", [False, True])
async def test_a_restored_guest_has_its_clock_from_the_vmm(
    driver: FirecrackerDriver, plan: LaunchPlan, again: bool
) -> None:
    """Its random pool is for its agent: there is none before the stand-in has a network."""
    await saved(driver, plan)
    handle = await driver.restore(plan)
    await handle.resume()
    done = await handle.put_right(again=again, timeout_s=1)
    assert "clock" in done.done
    assert "clock" not in done.undone
    assert ("random" in {*done.done, *done.undone}) == again
    await handle.kill()


async def test_a_state_that_is_too_large_is_cut_off_and_refused(driver: FirecrackerDriver, plan: LaunchPlan) -> None:
    """A VMM that was taken over cannot fill the daemon's memory."""
    handle = await paused(driver, plan)
    box_state = plan.paths.new_state
    await handle.capture()
    os.truncate(box_state, 1 << 40)
    handle._join()
    assert plan.paths.state.stat().st_size == 10 << 20
    await handle.kill()


async def test_without_a_network_it_is_not_on_the_host_s(driver: FirecrackerDriver, plan: LaunchPlan) -> None:
    handle = await driver.launch(plan)
    assert Path(f"/proc/{handle.pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    await handle.kill()


async def test_an_older_one_loads_what_it_wrote(tmp_path: Path, plan: LaunchPlan, driver: FirecrackerDriver) -> None:
    """The format that is no longer read by the newest is read by the one that wrote it."""
    newer = installed(str(standin.binary(tmp_path / "newer", version="1.17.0-dev")))
    await saved(driver, plan)
    wrote = (await driver.stamp(plan)).vmm_version
    stamp = await driver.stamp(plan)
    alone = FirecrackerDriver([newer], Bare(), Devices())
    assert "it was made by Firecracker 1.16.1" in str(stamp.difference(await alone.stamp(plan, stamp)))
    both = FirecrackerDriver([newer, driver._installed[0]], Bare(), Devices())
    assert stamp.difference(await both.stamp(plan, stamp)) is None
    handle = await both.restore(replace(plan, written_by=wrote))
    assert handle.version == wrote
    await handle.resume()
    await handle.pause()
    await handle.capture()
    await handle.quit()
    await runs_on(driver, plan)
