"""One set of conversations, with the stand-in for Firecracker and with the real one: they answer alike.

The real one takes part where HATCH_FIRECRACKER_BIN names it. Its guest is a kernel of a few bytes that counts.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from hatchvm.base.units import MIB
from hatchvm.net.bridge.namespace import Namespace
from hatchvm.testing.firecracker import counter
from hatchvm.testing.firecracker.binary import binary
from hatchvm.testing.firecracker.handler import serving
from hatchvm.testing.firecracker.record import violations
from hatchvm.testing.firecracker.talk import Talk, talk
from hatchvm.testing.net.wires import ip

REAL: Final = os.environ.get("HATCH_FIRECRACKER_BIN")
AS_ROOT: Final = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which needs root")
MEM_MIB: Final = 32
MAC: Final = "52:54:00:00:00:10"
DRIVE: Final[dict[str, Any]] = {"drive_id": "disk", "is_root_device": True, "path_on_host": "disk"}
CARD: Final[dict[str, Any]] = {"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": MAC}
BUCKET: Final = {"size": 1 << 20, "refill_time": 1000}
LIMITS: Final = {"bandwidth": {**BUCKET, "one_time_burst": 1 << 21}, "ops": BUCKET}
MACHINE: Final = {"vcpu_count": 1, "mem_size_mib": MEM_MIB, "track_dirty_pages": True}
BOOT: Final = {"kernel_image_path": "kernel", "boot_args": "console=ttyS0"}
BACKEND: Final = {"backend_type": "File", "backend_path": "memory"}
LOAD: Final[dict[str, Any]] = {"snapshot_path": "state", "mem_backend": BACKEND}


@pytest.fixture(params=["stand-in", "real"])
def firecracker(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "stand-in":
        return binary(tmp_path / "bin")
    if REAL is None:
        pytest.skip("not run here: HATCH_FIRECRACKER_BIN is not set")
    return Path(REAL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a VM needs."""
    made = tmp_path / "box"
    made.mkdir()
    counter.write(made / "kernel")
    (made / "initrd").write_bytes(b"not looked into")
    for name in ("disk", "seed"):
        (made / name).touch()
        os.truncate(made / name, MIB)
    return made


@pytest.fixture
def fresh(firecracker: Path, folder: Path) -> Iterator[Talk]:
    with talk(firecracker, folder) as talking:
        yield talking


@pytest.fixture
def space() -> Iterator[Namespace]:
    """A network namespace with a TAP."""
    made = Namespace(f"hatch-{secrets.token_hex(4)}")
    made.make()
    try:
        ip("-n", str(made.name), "tuntap", "add", "tap0", "mode", "tap", "vnet_hdr")
        yield made
    finally:
        made.remove()


def start(vm: Talk) -> None:
    assert vm.put("/machine-config", **MACHINE) == 204
    assert vm.put("/boot-source", **BOOT) == 204
    assert vm.put("/drives/disk", **DRIVE) == 204
    assert vm.put("/actions", action_type="InstanceStart") == 204


def snapshot(vm: Talk, kind: str = "Full", memory: str = "memory") -> int:
    return vm.put("/snapshot/create", snapshot_path="state", mem_file_path=memory, snapshot_type=kind)


def saved(firecracker: Path, folder: Path) -> None:
    """A VM's state and memory, whose process is gone."""
    with talk(firecracker, folder) as vm:
        start(vm)
        assert vm.patch("/vm", state="Paused") == 204
        assert snapshot(vm, "Diff") == 204


def run(firecracker: Path, *args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([firecracker, *args], capture_output=True, text=True, check=False, cwd=cwd, timeout=30)


# --- before a VM runs


def test_tells_its_version_and_that_of_its_snapshots(firecracker: Path) -> None:
    assert run(firecracker, "--version").stdout.splitlines()[0] == "Firecracker v1.16.1"
    assert run(firecracker, "--snapshot-version").stdout.splitlines()[0] == "v10.0.0"


def test_bad_arguments_have_an_exit_code_of_their_own(firecracker: Path) -> None:
    assert run(firecracker, "--never-heard-of").returncode == 153


def test_a_socket_that_is_there_is_not_replaced(fresh: Talk, firecracker: Path) -> None:
    assert run(firecracker, "--api-sock", "api.sock", cwd=fresh.folder).returncode == 1
    assert fresh.state == "Not started"


def test_what_it_tells_before_a_vm_runs(fresh: Talk) -> None:
    told = {"id": "talk", "state": "Not started", "vmm_version": "1.16.1", "app_name": "Firecracker"}
    assert fresh.ask("GET", "/") == (200, told)
    assert fresh.ask("GET", "/version") == (200, {"firecracker_version": "1.16.1"})
    assert fresh.ask("GET", "/machine-config")[1]["mem_size_mib"] == 128
    assert fresh.ask("GET", "/vm/config")[0] == 200
    assert fresh.ask("GET", "/balloon")[0] == 400


@AS_ROOT
def test_everything_that_a_driver_configures(firecracker: Path, folder: Path, space: Namespace) -> None:
    with space.inside(), talk(firecracker, folder) as vm:
        assert vm.put("/logger", log_path="fc.log", level="Info", show_level=True) == 204
        assert vm.put("/metrics", metrics_path="fc.metrics") == 204
        assert vm.put("/metrics", metrics_path="fc.metrics") == 400
        assert vm.put("/machine-config", **MACHINE, smt=False, huge_pages="None") == 204
        assert vm.patch("/machine-config", mem_size_mib=2 * MEM_MIB) == 204
        assert vm.put("/boot-source", **BOOT, initrd_path="initrd") == 204
        assert vm.put("/drives/disk", **DRIVE, is_read_only=False, cache_type="Writeback", rate_limiter=LIMITS) == 204
        seed = DRIVE | {"drive_id": "seed", "path_on_host": "seed", "is_root_device": False}
        assert vm.put("/drives/seed", **seed, is_read_only=True, io_engine="Sync") == 204
        assert vm.put("/network-interfaces/eth0", **CARD, tx_rate_limiter=LIMITS, rx_rate_limiter=LIMITS) == 204
        assert vm.put("/network-interfaces/eth0", **CARD, mtu=1500) == 204, "a card is told of again"
        assert vm.put("/vsock", guest_cid=3, uds_path="vsock") == 204
        assert vm.put("/vsock", guest_cid=4, uds_path="vsock") == 204, "the device is told of again"
        assert (folder / "vsock").is_socket()
        assert vm.put("/entropy", rate_limiter={"bandwidth": BUCKET}) == 204
        assert vm.put("/balloon", amount_mib=0, deflate_on_oom=True, free_page_reporting=True) == 204
        assert vm.put("/serial", serial_out_path="console", rate_limiter=BUCKET) == 204
        assert vm.ask("GET", "/balloon")[1]["free_page_reporting"] is True
        config = vm.ask("GET", "/vm/config")[1]
        assert [drive["drive_id"] for drive in config["drives"]] == ["disk", "seed"]
        assert config["network-interfaces"][0]["host_dev_name"] == "tap0"
        assert config["machine-config"]["mem_size_mib"] == 2 * MEM_MIB
        assert vm.put("/actions", action_type="InstanceStart") == 204
        assert vm.state == "Running"
        assert (folder / "console").exists()
        assert (folder / "fc.log").exists()


REFUSED: Final = {
    "an unknown path": ("PUT", "/nonsense", {}),
    "a method that is not there": ("PATCH", "/boot-source", BOOT),
    "no JSON": ("PUT", "/machine-config", b"{"),
    "no body": ("PUT", "/machine-config", None),
    "a body where none belongs": ("GET", "/version", {}),
    "an unknown field": ("PUT", "/machine-config", MACHINE | {"turbo": True}),
    "an unknown field of a limiter": ("PUT", "/entropy", {"rate_limiter": {"turbo": BUCKET}}),
    "a field of a later version": ("PUT", "/snapshot/load", LOAD | {"huge_pages": "None"}),
    "a wrong type": ("PUT", "/machine-config", MACHINE | {"mem_size_mib": "32"}),
    "a number where true belongs": ("PUT", "/machine-config", MACHINE | {"smt": 1}),
    "a missing field": ("PUT", "/machine-config", {"vcpu_count": 1}),
    "no vCPU": ("PUT", "/machine-config", MACHINE | {"vcpu_count": 0}),
    "three vCPUs with threads": ("PUT", "/machine-config", MACHINE | {"vcpu_count": 3, "smt": True}),
    "too many vCPUs": ("PUT", "/machine-config", MACHINE | {"vcpu_count": 33}),
    "no such size of pages": ("PUT", "/machine-config", MACHINE | {"huge_pages": "4M"}),
    "an id that is another": ("PUT", "/drives/other", DRIVE),
    "an id with a hyphen": ("PUT", "/drives/my-disk", DRIVE | {"drive_id": "my-disk"}),
    "no such file": ("PUT", "/drives/disk", DRIVE | {"path_on_host": "nowhere"}),
    "a drive without a path": ("PUT", "/drives/disk", {"drive_id": "disk", "is_root_device": True}),
    "no such kernel": ("PUT", "/boot-source", BOOT | {"kernel_image_path": "nowhere"}),
    "no such initrd": ("PUT", "/boot-source", BOOT | {"initrd_path": "nowhere"}),
    "a hardware address that is none": ("PUT", "/network-interfaces/eth0", CARD | {"guest_mac": "52:54"}),
    "a name too long for a TAP": ("PUT", "/network-interfaces/eth0", CARD | {"host_dev_name": "x" * 16}),
    "a vsock in no folder": ("PUT", "/vsock", {"guest_cid": 3, "uds_path": "nowhere/vsock"}),
    "an action that is none": ("PUT", "/actions", {"action_type": "InstanceStop"}),
    "a start without a kernel": ("PUT", "/actions", {"action_type": "InstanceStart"}),
    "a pause of nothing": ("PATCH", "/vm", {"state": "Paused"}),
    "a resume of nothing": ("PATCH", "/vm", {"state": "Resumed"}),
    "a shutdown of nothing": ("PUT", "/actions", {"action_type": "SendCtrlAltDel"}),
    "metrics of nothing": ("PUT", "/actions", {"action_type": "FlushMetrics"}),
    "a snapshot of nothing": ("PUT", "/snapshot/create", {"snapshot_path": "state", "mem_file_path": "memory"}),
    "another disk for nothing": ("PATCH", "/drives/disk", {"drive_id": "disk", "path_on_host": "disk"}),
    "a load without memory": ("PUT", "/snapshot/load", {"snapshot_path": "state"}),
    "a load of an unknown kind": ("PUT", "/snapshot/load", LOAD | {"mem_backend": BACKEND | {"backend_type": "S3"}}),
    "statistics of no balloon": ("GET", "/balloon/statistics", None),
}


def test_what_is_refused_before_a_vm_runs(fresh: Talk) -> None:
    answers = {case: fresh.ask(*asked) for case, asked in REFUSED.items()}
    assert {case: status for case, (status, _) in answers.items()} == dict.fromkeys(REFUSED, 400)
    assert all(isinstance(answer["fault_message"], str) for _, answer in answers.values())
    assert fresh.state == "Not started"


def test_a_second_root_disk_is_refused(fresh: Talk) -> None:
    assert fresh.put("/drives/disk", **DRIVE) == 204
    assert fresh.put("/drives/seed", **DRIVE | {"drive_id": "seed", "path_on_host": "seed"}) == 400


def test_a_kernel_that_is_none_is_noticed_at_the_start(fresh: Talk) -> None:
    (fresh.folder / "kernel").write_bytes(b"nonsense" * 1000)
    assert fresh.put("/boot-source", **BOOT) == 204
    assert fresh.put("/actions", action_type="InstanceStart") == 400
    assert fresh.state == "Not started"


@AS_ROOT
def test_a_tap_that_is_in_use_is_refused(firecracker: Path, folder: Path, space: Namespace, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with space.inside(), talk(firecracker, folder) as one, talk(firecracker, other) as two:
        assert one.put("/network-interfaces/eth0", **CARD) == 204
        assert two.put("/network-interfaces/eth0", **CARD) == 400


# --- while it runs


NOT_AFTER_START: Final = {
    "a second start": ("PUT", "/actions", {"action_type": "InstanceStart"}),
    "a machine": ("PUT", "/machine-config", MACHINE),
    "a part of a machine": ("PATCH", "/machine-config", {"mem_size_mib": 64}),
    "a kernel": ("PUT", "/boot-source", BOOT),
    "a vsock": ("PUT", "/vsock", {"guest_cid": 3, "uds_path": "vsock"}),
    "a drive": ("PUT", "/drives/seed", DRIVE | {"drive_id": "seed", "path_on_host": "seed", "is_root_device": False}),
    "a card": ("PUT", "/network-interfaces/eth0", CARD),
    "an entropy device": ("PUT", "/entropy", {}),
    "a balloon": ("PUT", "/balloon", {"amount_mib": 0, "deflate_on_oom": True}),
    "a console": ("PUT", "/serial", {"serial_out_path": "console"}),
    "a log": ("PUT", "/logger", {"log_path": "fc.log"}),
    "metrics": ("PUT", "/metrics", {"metrics_path": "fc.metrics"}),
    "a load": ("PUT", "/snapshot/load", LOAD),
    "a balloon that is not there": ("PATCH", "/balloon", {"amount_mib": 1}),
}


def test_a_vm_starts_pauses_and_goes_on(fresh: Talk) -> None:
    start(fresh)
    assert fresh.state == "Running"
    for state in ("Paused", "Paused", "Resumed", "Resumed"):
        assert fresh.patch("/vm", state=state) == 204
        assert fresh.state == state.replace("Resumed", "Running")
    assert fresh.put("/actions", action_type="SendCtrlAltDel") == 204


def test_what_is_refused_while_a_vm_runs(fresh: Talk) -> None:
    start(fresh)
    answers = {case: fresh.ask(*asked)[0] for case, asked in NOT_AFTER_START.items()}
    assert answers == dict.fromkeys(NOT_AFTER_START, 400)
    assert snapshot(fresh) == 400, "a running VM has no snapshot"
    assert fresh.state == "Running"
    assert fresh.patch("/vm", state="Paused") == 204
    answers = {case: fresh.ask(*asked)[0] for case, asked in NOT_AFTER_START.items()}
    assert answers == dict.fromkeys(NOT_AFTER_START, 400)


def test_a_disk_is_exchanged_under_a_vm(fresh: Talk) -> None:
    start(fresh)
    assert fresh.patch("/drives/disk", drive_id="disk", path_on_host="seed") == 204
    assert fresh.patch("/drives/none", drive_id="none", path_on_host="seed") == 400


# --- snapshots


def held(path: Path) -> list[int]:
    """The file's pages that are there, by number."""
    pages: list[int] = []
    with path.open("rb") as file:
        at = 0
        while (at := seek_data(file.fileno(), at)) >= 0:
            end = os.lseek(file.fileno(), at, os.SEEK_HOLE)
            pages += range(at // 4096, end // 4096)
            at = end
    return pages


def seek_data(fd: int, at: int) -> int:
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError:
        return -1


def test_a_diff_holds_what_was_written_since_the_last_snapshot(fresh: Talk) -> None:
    start(fresh)
    assert fresh.patch("/vm", state="Paused") == 204
    for name in ("first", "second", "third"):
        assert snapshot(fresh, "Diff", name) == 204
        assert (fresh.folder / name).stat().st_size == MEM_MIB * MIB
        assert fresh.patch("/vm", state="Resumed") == 204
        assert fresh.patch("/vm", state="Paused") == 204
    assert snapshot(fresh, "Diff", "last") == 204
    assert snapshot(fresh, "Diff", "again") == 204
    assert len(held(fresh.folder / "again")) < 8, "nothing ran"
    assert snapshot(fresh, "Full", "whole") == 204
    first, second, third, whole = (held(fresh.folder / name) for name in ("first", "second", "third", "whole"))
    assert 0 < len(third) < 400
    assert 0 < len(second) < 400
    assert first
    assert len(whole) == MEM_MIB * MIB // 4096, "a full one holds every page"


def test_a_diff_is_merged_into_a_file_of_the_right_size(fresh: Talk) -> None:
    kept = fresh.folder / "memory"
    start(fresh)
    assert fresh.patch("/vm", state="Paused") == 204
    assert snapshot(fresh, "Diff", "before") == 204
    kept.write_bytes(b"x" * (MEM_MIB * MIB))
    assert fresh.patch("/vm", state="Resumed") == 204
    assert fresh.patch("/vm", state="Paused") == 204
    assert snapshot(fresh, "Diff") == 204
    assert b"x" * 4096 in kept.read_bytes(), "what the guest did not write stays"
    kept.write_bytes(b"x" * 4096)
    assert snapshot(fresh, "Diff") == 204
    assert kept.stat().st_size == MEM_MIB * MIB
    assert b"x" not in kept.read_bytes()[:4096], "a file of another size is emptied"


def test_a_snapshot_that_cannot_be_written_harms_nobody(fresh: Talk) -> None:
    start(fresh)
    assert fresh.patch("/vm", state="Paused") == 204
    assert snapshot(fresh, "Diff", "nowhere/memory") == 400
    assert fresh.state == "Paused"
    assert snapshot(fresh, "Diff") == 204
    assert held(fresh.folder / "memory"), "what the failed one would have held is not forgotten"
    assert fresh.patch("/vm", state="Resumed") == 204


def test_a_restored_vm_goes_on(firecracker: Path, folder: Path) -> None:
    saved(firecracker, folder)
    told = run(firecracker, "--describe-snapshot", "state", cwd=folder)
    assert told.stdout.splitlines()[0] == "v10.0.0"
    with talk(firecracker, folder) as vm:
        assert vm.put("/serial", serial_out_path="console") == 204
        assert vm.put("/logger", log_path="fc.log") == 204
        assert vm.put("/snapshot/load", **LOAD, track_dirty_pages=True, clock_realtime=True) == 204
        assert vm.state == "Paused"
        assert vm.ask("GET", "/vm/config")[1]["drives"][0]["path_on_host"] == "disk"
        assert vm.put("/snapshot/load", **LOAD) == 400
        assert vm.patch("/vm", state="Resumed") == 204
        assert vm.patch("/vm", state="Paused") == 204
        assert snapshot(vm, "Diff", "changes") == 204
        assert 0 < len(held(folder / "changes")) < 200
    record = firecracker.parent / "record"
    assert all("snapshot/load" in line for line in violations(record)), "the second load, nothing else"


def test_a_vm_may_run_as_soon_as_it_is_loaded(firecracker: Path, folder: Path) -> None:
    saved(firecracker, folder)
    with talk(firecracker, folder) as vm:
        assert vm.put("/snapshot/load", **LOAD, resume_vm=True) == 204
        assert vm.state == "Running"


def test_a_configured_process_loads_nothing_and_lives(firecracker: Path, folder: Path) -> None:
    saved(firecracker, folder)
    with talk(firecracker, folder) as vm:
        assert vm.put("/machine-config", **MACHINE) == 204
        assert vm.put("/snapshot/load", **LOAD) == 400
        assert vm.state == "Not started"


@AS_ROOT
def test_memory_comes_by_page_faults(firecracker: Path, folder: Path) -> None:
    saved(firecracker, folder)
    elsewhere = {"backend_type": "Uffd", "backend_path": "faults.sock"}
    with serving(folder / "memory", folder / "faults.sock") as handler, talk(firecracker, folder) as vm:
        assert vm.put("/snapshot/load", **LOAD | {"mem_backend": elsewhere}, track_dirty_pages=True) == 204
        assert vm.patch("/vm", state="Resumed") == 204
        assert vm.patch("/vm", state="Paused") == 204
        assert snapshot(vm, "Diff", "changes") == 204
        vm.kill()
    (region,) = handler.regions
    assert region | {"base_host_virt_addr": 0} == {
        "base_host_virt_addr": 0,
        "size": MEM_MIB * MIB,
        "offset": 0,
        "page_size": 4096,
        "page_size_kib": 4096,
    }
    assert handler.served
    assert 0 < len(held(folder / "changes")) < 400


@AS_ROOT
def test_a_load_without_a_handler_ends_the_process(firecracker: Path, folder: Path) -> None:
    saved(firecracker, folder)
    elsewhere = {"backend_type": "Uffd", "backend_path": "faults.sock"}
    with talk(firecracker, folder) as vm:
        assert vm.put("/snapshot/load", **LOAD | {"mem_backend": elsewhere}) == 400
        assert vm.exit_code() == 1


def damage(folder: Path) -> None:
    content = bytearray((folder / "state").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "state").write_bytes(content)


BROKEN: Final[dict[str, Callable[[Path], object]]] = {
    "a damaged state": damage,
    "an empty state": lambda folder: (folder / "state").write_bytes(b""),
    "a short state": lambda folder: os.truncate(folder / "state", 100),
    "no state": lambda folder: (folder / "state").unlink(),
    "no memory": lambda folder: (folder / "memory").unlink(),
    "memory that is too short": lambda folder: os.truncate(folder / "memory", MIB),
    "no disk": lambda folder: (folder / "disk").unlink(),
}


def test_a_load_that_fails_ends_the_process(firecracker: Path, folder: Path, tmp_path: Path) -> None:
    saved(firecracker, folder)
    for case, break_it in BROKEN.items():
        broken = tmp_path / case
        broken.mkdir()
        for name in ("state", "memory", "disk"):
            shutil.copy(folder / name, broken / name)
        break_it(broken)
        with talk(firecracker, broken) as vm:
            status, answer = vm.ask("PUT", "/snapshot/load", LOAD)
            assert (case, status, list(answer)) == (case, 400, ["fault_message"])
            assert vm.exit_code() == 1


@AS_ROOT
def test_a_load_names_other_places_for_card_and_vsock(firecracker: Path, folder: Path, space: Namespace) -> None:
    with space.inside():
        with talk(firecracker, folder) as vm:
            assert vm.put("/network-interfaces/eth0", **CARD) == 204
            assert vm.put("/vsock", guest_cid=3, uds_path="vsock") == 204
            start(vm)
            assert vm.patch("/vm", state="Paused") == 204
            assert snapshot(vm) == 204
        ip("tuntap", "add", "tap1", "mode", "tap", "vnet_hdr")
        ip("link", "del", "tap0")
        elsewhere: dict[str, Any] = {
            "network_overrides": [{"iface_id": "eth0", "host_dev_name": "tap1"}],
            "vsock_override": {"uds_path": "vsock2"},
        }
        with talk(firecracker, folder) as vm:
            assert vm.put("/snapshot/load", **LOAD, **elsewhere) == 204
            assert (folder / "vsock2").is_socket()
            assert vm.ask("GET", "/vm/config")[1]["network-interfaces"][0]["host_dev_name"] == "tap1"
            assert vm.patch("/vm", state="Resumed") == 204
        with talk(firecracker, folder) as vm:
            assert vm.put("/snapshot/load", **LOAD, **elsewhere) == 400, "its vsock is there already"
            assert vm.exit_code() == 1


def test_a_signal_ends_it(fresh: Talk) -> None:
    fresh.process.send_signal(signal.SIGTERM)
    assert fresh.exit_code() == -signal.SIGTERM
    assert (fresh.folder / "api.sock").is_socket(), "its socket stays behind"
