"""What every VMM driver promises (`ports/vmm.py`), fake and real. A new driver joins with one line in `RIGS`.

A guest is booted once per driver and saved; a test gets a copy of it, restored, which takes a fraction of a second.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Final, Protocol

import pytest

from hatchvm.base import tasks
from hatchvm.base.errors import Corrupt, Unavailable, Upstream, UpstreamTimeout
from hatchvm.base.paths import VMPaths
from hatchvm.base.process import start_ticks
from hatchvm.domain.image import TINY, Boot
from hatchvm.images import builtin
from hatchvm.images.seed import write_seed
from hatchvm.net.bridge.bridge import BridgeNetwork
from hatchvm.net.bridge.settings import Bridge
from hatchvm.node import touched
from hatchvm.ports.vmm import Driver, Exit, Handle, LaunchPlan, NetPlan
from hatchvm.server.config import load
from hatchvm.testing.firecracker import binary as standin
from hatchvm.testing.firecracker import counter
from hatchvm.testing.firecracker.bridged import BridgedDriver
from hatchvm.testing.firecracker.record import violations
from hatchvm.testing.vmm import OPEN, FakeDriver, Machines
from hatchvm.vmm.firecracker import probe
from hatchvm.vmm.firecracker.box import Bare
from hatchvm.vmm.firecracker.driver import FirecrackerDriver
from hatchvm.vmm.firecracker.requests import Devices
from hatchvm.vmm.firecracker.version import Installed, installed
from hatchvm.vmm.qemu.accel import Accelerator
from hatchvm.vmm.qemu.driver import QEMUDriver
from hatchvm.vmm.qemu.handle import QEMU

WEB: Final = 8080
CLOSED: Final = 81
#: Counts its answers in RAM: /run is a tmpfs.
USER_DATA: Final = f"""#!/bin/sh
mount -t tmpfs none /run 2>/dev/null
mkdir -p /www/cgi-bin
cat > /www/cgi-bin/count <<'END'
#!/bin/sh
n=$(( $(cat /run/count 2>/dev/null || echo 0) + 1 )); echo $n > /run/count
printf 'Content-Type: text/plain\\r\\n\\r\\n%s' "$n"
END
chmod +x /www/cgi-bin/count
httpd -p {WEB} -h /www
"""


class Rig(Protocol):
    """One kind of driver, over `folder`."""

    mem_mib: int
    boot: Boot
    net: NetPlan

    def driver(self) -> Driver:
        """One that knows nothing of earlier ones, as after a restart of the daemon."""

    def shoot(self, handle: Handle) -> None:
        """`kill -9`, by somebody else."""

    def forget(self, handle: Handle) -> None:
        """The daemon that held it is gone."""

    def alive(self, pid: int) -> bool: ...

    def forge(self, paths: VMPaths, pid: int) -> None:
        """Make the folder name a process that is not its own."""

    async def open(self) -> None:
        """Put into place what guests need of the host."""

    async def close(self) -> None:
        """Take it away."""


#: On a user network nobody but the VMM knows whether a guest's port is open.
USER_NET: Final = NetPlan(guest_ip="10.0.2.15", guest_mac="52:54:00:12:34:56", forwards={WEB: 0})


class FakeRig:
    net = USER_NET
    mem_mib = 32
    boot = Boot(kernel=Path("/k"), initrd=None, rootfs=Path("/r"), rootfs_format="raw", boot_args="")

    def __init__(self, folder: Path) -> None:
        self._machines = Machines(folder / "machines", ports={WEB: OPEN})

    def driver(self) -> Driver:
        return FakeDriver(self._machines)

    def shoot(self, handle: Handle) -> None:
        self._machines.end(handle.pid, Exit(False, "the VMM ended unexpectedly"))

    def forget(self, handle: Handle) -> None:
        """Nothing of a handle is in anybody's way."""

    def alive(self, pid: int) -> bool:
        return pid in self._machines.live()

    def forge(self, paths: VMPaths, pid: int) -> None:
        """Its processes are known by their folder: there is nothing to forge."""

    async def open(self) -> None:
        """There is nothing on the host."""

    async def close(self) -> None:
        """There is nothing on the host."""


class Processes:
    """Rigs whose VMMs are processes of this host."""

    def shoot(self, handle: Handle) -> None:
        os.kill(handle.pid, signal.SIGKILL)

    def alive(self, pid: int) -> bool:
        return start_ticks(pid) is not None

    def forge(self, paths: VMPaths, pid: int) -> None:
        record = json.loads(paths.process.read_text()) if paths.process.exists() else {"boot_id": "", "start_ticks": 0}
        paths.process.write_text(json.dumps({**record, "pid": pid, "start_ticks": 1}))

    async def open(self) -> None:
        """There is nothing on the host."""

    async def close(self) -> None:
        """There is nothing on the host."""


class QEMURig(Processes):
    net = USER_NET
    mem_mib = 128

    def __init__(self, folder: Path) -> None:
        self._accel = folder / "accel.json"
        image = asyncio.run(builtin.build(TINY, load(None).cache_dir, print))
        self.boot = image.boot

    def driver(self) -> Driver:
        return QEMUDriver(Accelerator("tcg", memory=self._accel))

    def forget(self, handle: Handle) -> None:
        assert isinstance(handle, QEMU)
        handle._qmp.close()


class BridgedRig(Processes):
    """Firecrackers, whose guests need a bridge."""

    net = NetPlan(guest_ip="198.18.0.10", guest_mac="52:54:00:12:34:56", tap_name="vm-000000000001")

    def __init__(self, firecracker: Installed) -> None:
        self._installed = firecracker
        space = f"hatch-{uuid.uuid4().hex[:8]}"
        self._network = BridgeNetwork(
            Bridge(name="conf0", cidr=IPv4Interface("198.18.0.1/24"), netns=space, run=Path("/run/hatchvm"))
        )

    def driver(self) -> Driver:
        driver = FirecrackerDriver([self._installed], Bare(), Devices())
        return BridgedDriver(driver, self._network)

    def forget(self, handle: Handle) -> None:
        """Firecracker hears several at a time."""

    async def open(self) -> None:
        await self._network.open()

    async def close(self) -> None:
        await self._network.remove()


class StandInRig(BridgedRig):
    """The whole driver, with all of the host's side real but the virtual machine."""

    mem_mib = 32

    def __init__(self, folder: Path) -> None:
        super().__init__(installed(str(standin.binary(folder / "standin"))))
        (folder / "rootfs").write_bytes(bytes(1 << 20))
        self.boot = Boot(
            kernel=counter.write(folder / "kernel"),
            initrd=None,
            rootfs=folder / "rootfs",
            rootfs_format="raw",
            boot_args="console=ttyS0 standin.ip=198.18.0.10/24 standin.gw=198.18.0.1",
        )

    async def close(self) -> None:
        await super().close()
        assert violations(self._installed.path.parent / standin.RECORD) == []


class RealRig(BridgedRig):
    """The real one, with the image that users boot."""

    mem_mib = 128

    def __init__(self, folder: Path) -> None:
        super().__init__(installed(os.environ["HATCH_FIRECRACKER_BIN"]))
        self.boot = asyncio.run(builtin.build(TINY, load(None).cache_dir, print)).boot
        if not asyncio.run(probe.works(self._installed, self.boot.kernel, load(None).cache_dir / "firecracker.json")):
            pytest.skip("not run here: needs KVM that runs a kernel")


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="not run here: a bridge needs root")
RIGS: Final = [
    pytest.param(FakeRig, id="fake"),
    pytest.param(QEMURig, id="qemu", marks=[pytest.mark.vm, pytest.mark.xdist_group("vm"), pytest.mark.column("QEMU")]),
    pytest.param(StandInRig, id="firecracker", marks=[pytest.mark.column("Firecracker (stand-in)"), needs_root]),
    pytest.param(
        RealRig,
        id="real firecracker",
        marks=[
            pytest.mark.column("Firecracker (real, a kernel)"),
            pytest.mark.skipif("HATCH_FIRECRACKER_BIN" not in os.environ, reason="not run here: needs a Firecracker"),
            needs_root,
        ],
    ),
]


class Saved:
    """A guest that was booted, has answered once, and was saved."""

    def __init__(self, rig: Rig, folder: Path) -> None:
        self.rig = rig
        self.plan = plan_of(rig, folder)

    async def make(self) -> None:
        await self.rig.open()
        driver = self.rig.driver()
        paths = self.plan.paths
        paths.root.mkdir()
        write_seed(paths.seed, instance_id="vm-1", hostname="guest", user_data=USER_DATA)
        assert self.plan.boot.rootfs is not None
        await driver.create_disk(self.plan.boot.rootfs, "raw", paths.disk)
        handle = await driver.launch(self.plan)
        assert await handle.running()
        assert await count(handle, patience_s=90) == 1
        await save(handle)

    def copy(self, folder: Path) -> LaunchPlan:
        subprocess.run(["cp", "-r", "--sparse=always", self.plan.paths.root, folder], check=True)
        return plan_of(self.rig, folder)


def plan_of(rig: Rig, folder: Path) -> LaunchPlan:
    return LaunchPlan(
        vm_id="vm-000000000001",
        paths=VMPaths(folder),
        boot=rig.boot,
        boot_args=rig.boot.boot_args,
        image_digest="d",
        vcpu_count=1,
        mem_mib=rig.mem_mib,
        net=rig.net,
        has_seed=True,
    )


async def save(handle: Handle) -> None:
    await handle.pause()
    await handle.capture()
    await handle.quit()


async def dial(handle: Handle, port: int, *, patience_s: float = 0.0, deadline_s: float = 30.0) -> socket.socket:
    now = asyncio.get_running_loop().time()
    return await handle.dial(port, patient_until=now + patience_s, deadline=now + max(patience_s, deadline_s))


async def count(handle: Handle, *, patience_s: float = 10.0) -> int:
    """One request: how many the guest has answered."""
    reader, writer = await asyncio.open_connection(sock=await dial(handle, WEB, patience_s=patience_s))
    writer.write(b"GET /cgi-bin/count HTTP/1.0\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return int(answer.rpartition(b"\r\n")[2])


@pytest.fixture(scope="session", params=RIGS)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    folder = tmp_path_factory.mktemp("vmm")
    saved = Saved(request.param(folder), folder / "vm")
    try:
        asyncio.run(saved.make())
        yield saved
    finally:
        asyncio.run(saved.rig.close())


@pytest.fixture
def rig(saved: Saved) -> Rig:
    return saved.rig


@pytest.fixture
async def plan(saved: Saved, tmp_path: Path) -> AsyncIterator[LaunchPlan]:
    """A saved guest; whatever was started over it is ended."""
    plan = saved.copy(tmp_path / "vm")
    yield plan
    await saved.rig.driver().kill_stray(plan.paths)


@pytest.fixture
async def handle(rig: Rig, plan: LaunchPlan) -> AsyncIterator[Handle]:
    """A restored guest that runs."""
    handle = await rig.driver().restore(plan)
    await handle.resume()
    yield handle
    await handle.kill()


@pytest.mark.feature("create")
@pytest.mark.feature("disk-only boot")
async def test_a_guest_whose_memory_is_forgotten_boots_from_its_disk(rig: Rig, plan: LaunchPlan) -> None:
    write_seed(plan.paths.seed, instance_id="vm-2", hostname="guest", user_data=USER_DATA)  # it is told once again
    handle = await rig.driver().launch(plan)
    assert await handle.running()
    assert await count(handle, patience_s=90) == 1
    await handle.kill()


@pytest.mark.feature("network")
@pytest.mark.feature("restore elsewhere")
@pytest.mark.feature("wake")
async def test_a_restored_guest_stands_still_until_it_is_resumed(rig: Rig, plan: LaunchPlan) -> None:
    handle = await rig.driver().restore(plan)
    assert not await handle.running()
    await handle.resume()
    assert await handle.running()
    assert await count(handle) == 2, "its memory is that of the saved one"
    await handle.kill()


@pytest.mark.feature("suspend")
async def test_pausing_and_resuming_may_be_repeated(handle: Handle) -> None:
    for _ in range(2):
        await handle.pause()
        assert not await handle.running()
    for _ in range(2):
        await handle.resume()
        assert await handle.running()
    assert await count(handle) == 2


@pytest.mark.feature("suspend")
@pytest.mark.feature("snapshot")
async def test_a_captured_guest_can_be_resumed_and_captured_again(rig: Rig, plan: LaunchPlan, handle: Handle) -> None:
    await handle.pause()
    await handle.capture()
    await handle.resume()
    assert await count(handle) == 2
    await save(handle)
    again = await rig.driver().restore(plan)
    await again.resume()
    assert await count(again) == 3
    await again.kill()


@pytest.mark.feature("diff")
async def test_a_capture_tells_what_the_guest_wrote(plan: LaunchPlan, handle: Handle) -> None:
    before = plan.paths.memory.read_bytes()
    await count(handle)
    await handle.pause()
    pages = await handle.capture()
    after = plan.paths.memory.read_bytes()
    await handle.resume()
    if pages is None:
        pytest.skip("not told: QEMU maps the memory file shared")
    numbers = range(len(after) // 4096)
    changed = {n for n in numbers if before[n * 4096 : (n + 1) * 4096] != after[n * 4096 : (n + 1) * 4096]}
    assert changed
    assert changed <= set(pages.tolist())


@pytest.mark.feature("stats")
async def test_the_host_sees_which_memory_a_guest_uses(rig: Rig, plan: LaunchPlan, handle: Handle) -> None:
    await count(handle)
    if isinstance(rig, FakeRig):
        pytest.skip("it has no process")
    assert len(touched.resident(handle.pid, plan.paths))


@pytest.mark.feature("wake")
async def test_a_pair_is_not_spent_until_the_guest_runs(rig: Rig, plan: LaunchPlan) -> None:
    for _ in range(2):
        handle = await rig.driver().restore(plan)
        await handle.kill()
    handle = await rig.driver().restore(plan)
    await handle.resume()
    assert await count(handle) == 2
    await handle.kill()


@pytest.mark.feature("adopt")
async def test_a_later_driver_takes_the_process_back(rig: Rig, plan: LaunchPlan, handle: Handle) -> None:
    rig.forget(handle)
    adopted = await rig.driver().adopt(plan)
    assert adopted is not None
    assert adopted.pid == handle.pid
    assert adopted.version == handle.version == (await rig.driver().stamp(plan)).vmm_version
    assert await adopted.running()
    assert await count(adopted) == 2
    await save(adopted)
    assert not rig.alive(handle.pid)


@pytest.mark.feature("adopt")
async def test_there_is_nothing_to_adopt_where_nothing_runs(rig: Rig, plan: LaunchPlan) -> None:
    assert await rig.driver().adopt(plan) is None
    assert not await rig.driver().kill_stray(plan.paths)


@pytest.mark.feature("adopt")
@pytest.mark.feature("kill")
async def test_a_stranger_with_the_same_pid_is_left_alone(rig: Rig, plan: LaunchPlan) -> None:
    stranger = await asyncio.create_subprocess_exec("sleep", "60")
    rig.forge(plan.paths, stranger.pid)
    assert await rig.driver().adopt(plan) is None
    assert not await rig.driver().kill_stray(plan.paths)
    assert Path(f"/proc/{stranger.pid}/cmdline").read_bytes().startswith(b"sleep")
    stranger.kill()
    await stranger.wait()


@pytest.mark.feature("kill")
async def test_a_stray_process_is_ended(rig: Rig, plan: LaunchPlan) -> None:
    handle = await rig.driver().restore(plan)
    assert await rig.driver().kill_stray(plan.paths)
    assert not rig.alive(handle.pid)
    await handle.wait()


@pytest.mark.feature("kill")
async def test_ends_are_told_apart(rig: Rig, plan: LaunchPlan, handle: Handle) -> None:
    waiting = tasks.spawn(handle.wait(), name="wait")
    await asyncio.sleep(0)
    rig.shoot(handle)
    ended = await waiting
    assert not ended.by_guest
    assert "unexpectedly" in ended.reason
    assert not rig.alive(handle.pid)
    assert await handle.wait() == ended, "may be asked again"


@pytest.mark.feature("kill")
async def test_a_guest_that_shuts_down_did_so_itself(rig: Rig, handle: Handle) -> None:
    await handle.power_button()
    ended = await handle.wait()
    assert ended.by_guest
    assert not rig.alive(handle.pid)


@pytest.mark.feature("kill")
async def test_a_process_that_is_gone_says_so(rig: Rig, handle: Handle) -> None:
    rig.shoot(handle)
    await handle.wait()
    for call in (handle.pause, handle.resume, handle.capture, handle.running, handle.power_button):
        with pytest.raises(Unavailable):
            await call()
    with pytest.raises(Unavailable):
        await dial(handle, WEB)
    await handle.kill()
    await handle.quit()


@pytest.mark.feature("network")
async def test_a_closed_port_is_refused_once_patience_ends(handle: Handle) -> None:
    with pytest.raises(Upstream):
        await dial(handle, CLOSED, patience_s=0.05)


@pytest.mark.feature("network")
async def test_a_silent_guest_is_a_timeout(handle: Handle) -> None:
    await handle.pause()
    with pytest.raises(UpstreamTimeout):
        await dial(handle, WEB, deadline_s=0.1)
    await handle.resume()


@pytest.mark.feature("network")
async def test_what_accepted_is_remembered(rig: Rig, handle: Handle) -> None:
    assert handle.accepted == frozenset()
    await count(handle)
    assert handle.accepted == ({WEB} if rig.net.tap_name is None else frozenset())


@pytest.mark.feature("snapshot")
async def test_damaged_state_is_corrupt_and_leaves_no_process(rig: Rig, plan: LaunchPlan) -> None:
    plan.paths.state.write_bytes(b"\0" * plan.paths.state.stat().st_size)
    with pytest.raises(Corrupt):
        await rig.driver().restore(plan)
    assert not await rig.driver().kill_stray(plan.paths)


@pytest.mark.feature("snapshot")
@pytest.mark.parametrize("part", ["memory", "state"])
async def test_a_missing_part_is_corrupt_and_leaves_no_process(rig: Rig, plan: LaunchPlan, part: str) -> None:
    (plan.paths.root / part).unlink()
    with pytest.raises(Corrupt):
        await rig.driver().restore(plan)
    assert not await rig.driver().kill_stray(plan.paths)


@pytest.mark.feature("snapshot")
async def test_memory_of_the_wrong_size_is_corrupt(rig: Rig, plan: LaunchPlan) -> None:
    os.truncate(plan.paths.memory, plan.paths.memory.stat().st_size // 2)
    with pytest.raises(Corrupt):
        await rig.driver().restore(plan)


@pytest.mark.feature("restore elsewhere")
async def test_a_stamp_is_the_same_until_the_plan_changes(rig: Rig, plan: LaunchPlan, tmp_path: Path) -> None:
    driver = rig.driver()
    stamp = await driver.stamp(plan)
    assert await rig.driver().stamp(plan) == stamp
    kernel = tmp_path / "other kernel"
    kernel.write_bytes(b"another")
    boot = replace(plan.boot, kernel=kernel)
    for change in ({"mem_mib": 64}, {"vcpu_count": 2}, {"net": None}, {"boot": boot}, {"image_digest": "other"}):
        assert (await driver.stamp(replace(plan, **change))).difference(stamp)


@pytest.mark.feature("create")
async def test_a_check_says_how_vms_run(rig: Rig) -> None:
    assert await rig.driver().check()
