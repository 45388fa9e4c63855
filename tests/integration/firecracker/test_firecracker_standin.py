"""The stand-in for Firecracker: its guest lives in its memory, is reached over its card, and sees what is wrong."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from hatchvm.base.units import MIB
from hatchvm.net.bridge import links
from hatchvm.net.bridge.namespace import Namespace
from hatchvm.testing.firecracker import agent, counter
from hatchvm.testing.firecracker.binary import RECORD, Fault, binary, put_faults
from hatchvm.testing.firecracker.handler import serving
from hatchvm.testing.firecracker.record import agent_commands, requests, violations
from hatchvm.testing.firecracker.talk import Talk, connect, talk
from hatchvm.testing.net.wires import Lab, ip
from hatchvm.testing.vmm import read_guest
from hatchvm.vmm import guest_agent

AS_ROOT: Final = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which needs root")
MEM_MIB: Final = 8
GUEST, HOST = "198.18.0.10", "198.18.0.1"
CARD: Final = {"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "52:54:00:00:00:10"}
LOAD: Final[dict[str, Any]] = {
    "snapshot_path": "state",
    "mem_backend": {"backend_type": "File", "backend_path": "memory"},
    "track_dirty_pages": True,
}


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    return tmp_path / "bin"


@pytest.fixture
def firecracker(bin_folder: Path) -> Path:
    return binary(bin_folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "box"
    made.mkdir()
    counter.write(made / "kernel")
    (made / "disk").touch()
    os.truncate(made / "disk", MIB)
    return made


@pytest.fixture
def space() -> Iterator[Namespace]:
    """A host's side: a TAP with an address."""
    made = Namespace(f"hatch-{secrets.token_hex(4)}")
    made.make()
    try:
        ip("-n", str(made.name), "tuntap", "add", "tap0", "mode", "tap", "vnet_hdr")
        ip("-n", str(made.name), "addr", "add", f"{HOST}/24", "dev", "tap0")
        ip("-n", str(made.name), "link", "set", "tap0", "up")
        yield made
    finally:
        made.remove()


def start(vm: Talk, boot_args: str = "", *, card: bool = False, vsock: bool = False, balloon: bool = False) -> None:
    assert vm.put("/machine-config", vcpu_count=1, mem_size_mib=MEM_MIB, track_dirty_pages=True) == 204
    assert vm.put("/boot-source", kernel_image_path="kernel", boot_args=boot_args) == 204
    assert vm.put("/drives/disk", drive_id="disk", is_root_device=False, path_on_host="disk") == 204
    if card:
        assert vm.put("/network-interfaces/eth0", **CARD) == 204
    if vsock:
        assert vm.put("/vsock", guest_cid=3, uds_path="vsock") == 204
    if balloon:
        assert vm.put("/balloon", amount_mib=0, deflate_on_oom=True, free_page_reporting=True) == 204
    assert vm.put("/actions", action_type="InstanceStart") == 204


def capture(vm: Talk, memory: str = "memory") -> int:
    return vm.put("/snapshot/create", snapshot_path="state", mem_file_path=memory, snapshot_type="Diff")


def sleep(vm: Talk) -> None:
    assert vm.patch("/vm", state="Paused") == 204
    assert capture(vm) == 204
    vm.kill()


def wake(vm: Talk, **more: Any) -> None:
    assert vm.put("/snapshot/load", **LOAD, **more) == 204
    assert vm.patch("/vm", state="Resumed") == 204


def test_a_guest_lives_in_its_memory_and_its_disk(firecracker: Path, folder: Path, bin_folder: Path) -> None:
    with talk(firecracker, folder) as vm:
        start(vm, balloon=True)
        sleep(vm)
    first = read_guest(folder / "memory")
    assert first["ticks"] == read_guest(folder / "disk")["ticks"] == 2
    for _ in range(3):
        with talk(firecracker, folder) as vm:
            wake(vm)
            sleep(vm)
    last = read_guest(folder / "memory")
    assert (last["life"], last["ticks"]) == (first["life"], 8)
    assert read_guest(folder / "disk")["ticks"] == 8
    assert violations(bin_folder / RECORD) == []


def lose_a_page(folder: Path) -> None:
    """As if a diff had not been merged: a page that the guest wrote is what it was."""
    with (folder / "memory").open("r+b") as memory:
        pages = range(1, MEM_MIB * MIB // 4096)
        written = next(page for page in pages if any(os.pread(memory.fileno(), 4096, page * 4096)))
        os.pwrite(memory.fileno(), bytes(4096), written * 4096)


WRONG: Final[dict[str, Callable[[Path], object]]] = {
    "older memory": lambda folder: shutil.copy(folder / "memory.old", folder / "memory"),
    "an older disk": lambda folder: shutil.copy(folder / "disk.old", folder / "disk"),
    "an older state": lambda folder: shutil.copy(folder / "state.old", folder / "state"),
    "a page that was lost": lose_a_page,
}


def test_files_that_do_not_fit_are_noticed(firecracker: Path, folder: Path, bin_folder: Path, tmp_path: Path) -> None:
    with talk(firecracker, folder) as vm:
        start(vm)
        assert vm.patch("/vm", state="Paused") == 204
        assert capture(vm) == 204
        for name in ("memory", "disk", "state"):
            shutil.copy(folder / name, folder / f"{name}.old")
        assert vm.patch("/vm", state="Resumed") == 204
        sleep(vm)
    for number, (case, break_it) in enumerate(WRONG.items(), start=1):
        broken = tmp_path / case
        shutil.copytree(folder, broken, ignore=shutil.ignore_patterns("*.sock"))
        break_it(broken)
        with talk(firecracker, broken) as vm:
            wake(vm)
        found = violations(bin_folder / RECORD)
        assert len(found) == number, case
        assert found[-1].startswith("talk resumed with")


def test_memory_that_changes_under_a_guest_is_noticed(firecracker: Path, folder: Path, bin_folder: Path) -> None:
    with talk(firecracker, folder) as vm:
        start(vm)
        sleep(vm)
    with talk(firecracker, folder) as vm:
        assert vm.put("/snapshot/load", **LOAD) == 204
        lose_a_page(folder)
        assert vm.patch("/vm", state="Resumed") == 204
    assert "stale or damaged pages" in violations(bin_folder / RECORD)[0]


@AS_ROOT
def test_a_guest_runs_on_pages_that_a_handler_installs(firecracker: Path, folder: Path, bin_folder: Path) -> None:
    elsewhere = {"mem_backend": {"backend_type": "Uffd", "backend_path": "faults.sock"}}
    with talk(firecracker, folder) as vm:
        start(vm, balloon=True)
        sleep(vm)
    with serving(folder / "memory", folder / "faults.sock") as handler, talk(firecracker, folder) as vm:
        assert vm.put("/snapshot/load", **LOAD | elsewhere) == 204
        assert handler.served == [], "a paused guest asks for nothing"
        assert vm.patch("/vm", state="Resumed") == 204
        assert vm.patch("/vm", state="Paused") == 204
        vm.kill()
    assert 0 in handler.served
    assert len(handler.served) > 8
    assert handler.removed == {MEM_MIB * MIB // 4096 - 1}, "the page that the guest gave back"
    assert violations(bin_folder / RECORD) == []
    lose_a_page(folder)
    with serving(folder / "memory", folder / "faults.sock"), talk(firecracker, folder) as vm:
        assert vm.put("/snapshot/load", **LOAD | elsewhere) == 204
        assert vm.patch("/vm", state="Resumed") == 204
        vm.kill()
    assert len(violations(bin_folder / RECORD)) == 1


@AS_ROOT
def test_a_page_that_comes_back_full_is_noticed(firecracker: Path, folder: Path, bin_folder: Path) -> None:
    elsewhere = {"mem_backend": {"backend_type": "Uffd", "backend_path": "faults.sock"}}
    with talk(firecracker, folder) as vm:
        start(vm, balloon=True)
        sleep(vm)
    with (folder / "memory").open("r+b") as memory:
        os.pwrite(memory.fileno(), b"stale", (MEM_MIB * MIB) - 4096)
    with serving(folder / "memory", folder / "faults.sock") as handler, talk(firecracker, folder) as vm:
        handler.forgets = True
        assert vm.put("/snapshot/load", **LOAD | elsewhere) == 204
        for state in ("Resumed", "Paused"):
            assert vm.patch("/vm", state=state) == 204
        vm.kill()
    assert "came back" in violations(bin_folder / RECORD)[0]


@AS_ROOT
def test_a_handler_is_told_of_huge_pages(firecracker: Path, folder: Path, bin_folder: Path) -> None:
    elsewhere = {"mem_backend": {"backend_type": "Uffd", "backend_path": "faults.sock"}}
    with talk(firecracker, folder) as vm:
        assert vm.put("/machine-config", vcpu_count=1, mem_size_mib=MEM_MIB, huge_pages="2M") == 204
        assert vm.put("/boot-source", kernel_image_path="kernel") == 204
        assert vm.put("/actions", action_type="InstanceStart") == 204
        assert vm.patch("/vm", state="Paused") == 204
        assert vm.put("/snapshot/create", snapshot_path="state", mem_file_path="memory") == 204
    with talk(firecracker, folder) as vm:
        assert vm.put("/snapshot/load", **LOAD) == 400, "a file cannot be mapped so"
        assert vm.exit_code() == 1
    with serving(folder / "memory", folder / "faults.sock") as handler, talk(firecracker, folder) as vm:
        assert vm.put("/snapshot/load", **LOAD | elsewhere | {"track_dirty_pages": False}) == 204
        assert vm.patch("/vm", state="Resumed") == 204
        vm.kill()
    (region,) = handler.regions
    assert (region["page_size"], region["base_host_virt_addr"] % (2 * MIB)) == (2 * MIB, 0)
    assert violations(bin_folder / RECORD) == []


# --- its network


def count(space: Namespace, address: str = GUEST, *, timeout_s: float = 20) -> int:
    """Raises TimeoutError if the guest says nothing."""
    with space.inside():
        asking = socket.socket()
    with asking:
        asking.settimeout(timeout_s)
        asking.connect((address, 8080))
        asking.sendall(b"GET /cgi-bin/count HTTP/1.1\r\nHost: guest\r\n\r\n")
        with asking.makefile("rb") as answer:
            return int(answer.read().rpartition(b"\r\n")[2])


@AS_ROOT
def test_a_guest_is_reached_while_it_runs(firecracker: Path, folder: Path, bin_folder: Path, space: Namespace) -> None:
    with space.inside(), talk(firecracker, folder) as vm:
        start(vm, f"standin.ip={GUEST}/24 standin.gw={HOST}", card=True)
        assert [count(space) for _ in range(3)] == [1, 2, 3]
        assert vm.patch("/vm", state="Paused") == 204
        with pytest.raises(TimeoutError):
            count(space, timeout_s=0.2)
        assert capture(vm) == 204
        assert read_guest(folder / "memory")["requests"] == 3
        assert vm.patch("/vm", state="Resumed") == 204
        answered = count(space)
        assert answered in (4, 5), "whoever hung up may have been answered too"
        sleep(vm)
    with space.inside(), talk(firecracker, folder) as vm:
        wake(vm)
        assert count(space) > answered
    assert violations(bin_folder / RECORD) == []


@AS_ROOT
def test_a_guest_asks_for_its_address(firecracker: Path, folder: Path, bin_folder: Path) -> None:
    lab = Lab()
    asyncio.run(lab.network.open())
    seat = lab.seat(7)
    tap = str(seat.tap_name)
    card = {"iface_id": "eth0", "host_dev_name": tap, "guest_mac": seat.guest_mac}
    try:
        asyncio.run(lab.network.admit(seat))
        ip("-n", lab.id, "tuntap", "add", tap, "mode", "tap", "vnet_hdr")
        with lab.network.namespace.inside(), talk(firecracker, folder) as vm:
            links.plug(lab.bridge.name, tap, seat)
            assert vm.put("/network-interfaces/eth0", **card) == 204
            start(vm)
            assert count(lab.network.namespace, seat.guest_ip) == 1
            sleep(vm)
        with lab.network.namespace.inside(), talk(firecracker, folder) as vm:
            wake(vm)
            assert count(lab.network.namespace, seat.guest_ip) == 2, "it keeps the address"
    finally:
        lab.unplug()
        asyncio.run(lab.network.remove())
    assert violations(bin_folder / RECORD) == []


# --- its agent


class Agent:
    """What a host says to a guest's agent."""

    def __init__(self, folder: Path, port: int = agent.PORT) -> None:
        self.socket = connect(folder / "vsock")
        self.socket.sendall(f"CONNECT {port}\n".encode())
        self.lines = self.socket.makefile("rb")
        self.accepted = self.lines.readline().startswith(b"OK ")

    def ask(self, command: str, **arguments: Any) -> Any:
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        return json.loads(self.lines.readline().lstrip(b"\xff"))["return"]

    def close(self) -> None:
        self.lines.close()
        self.socket.close()


def test_a_guest_agent_listens_behind_vsock(firecracker: Path, folder: Path, bin_folder: Path) -> None:
    assert agent.PORT == guest_agent.VSOCK_PORT
    with talk(firecracker, folder) as vm:
        start(vm, vsock=True)
        other, talking = Agent(folder, port=5), Agent(folder)
        assert (other.accepted, talking.accepted) == (False, True)
        assert talking.ask("guest-sync-delimited", id=7) == 7
        assert vm.patch("/vm", state="Paused") == 204
        assert capture(vm) == 204
        assert talking.lines.readline() == b"", "a snapshot ends connections"
        vm.kill()
    (folder / "vsock").unlink()
    with talk(firecracker, folder) as vm:
        wake(vm)
        late = Agent(folder)
        slept = late.ask("guest-get-time")
        late.ask("guest-set-time", time=slept + 10**9)
        assert late.ask("guest-get-time") >= slept + 10**9
    for each in (other, talking, late):
        each.close()
    told = agent_commands(bin_folder / RECORD)
    assert told == ["guest-sync-delimited", "guest-get-time", "guest-set-time", "guest-get-time"]


def test_a_guest_need_not_have_an_agent(firecracker: Path, folder: Path) -> None:
    with talk(firecracker, folder) as vm:
        start(vm, "standin.agent=no", vsock=True)
        refused = Agent(folder)
        assert not refused.accepted
        refused.close()


# --- how it ends, and what goes wrong on demand


def test_ctrl_alt_del_shuts_the_guest_down(firecracker: Path, folder: Path) -> None:
    with talk(firecracker, folder) as vm:
        assert vm.put("/serial", serial_out_path="console") == 204
        start(vm)
        assert vm.patch("/vm", state="Paused") == 204
        assert vm.put("/actions", action_type="SendCtrlAltDel") == 204
        assert vm.state == "Paused", "a guest that stands still sees no key"
        assert vm.patch("/vm", state="Resumed") == 204
        assert vm.exit_code() == 0
    assert (folder / "console").read_bytes() == b"standin: booted\nstandin: shut down\n"
    assert "exit_code=0" in (folder / "log").read_text()


def test_requests_are_recorded_with_what_is_wrong(firecracker: Path, folder: Path, bin_folder: Path) -> None:
    with talk(firecracker, folder) as vm:
        assert vm.put("/vsock", guest_cid=3, uds_path="vsock", vsock_id="deprecated") == 400
        assert vm.ask("PUT", "/boot-source", b"{")[0] == 400
        start(vm)
        pid = vm.process.pid
    first, second, third, *_ = requests(bin_folder / RECORD)
    assert (first["pid"], first["phase"], first["status"]) == (pid, "fresh", 400)
    assert (second["body"], third["violations"]) == ("{", [])
    assert violations(bin_folder / RECORD) == [
        "PUT /vsock: vsock_id of PUT /vsock is deprecated",
        "PUT /boot-source: the body is not of type object",
    ]


def test_a_fault_refuses_a_call(firecracker: Path, folder: Path, bin_folder: Path) -> None:
    put_faults(bin_folder, {"PATCH /vm Paused": Fault("refuse", status=500, after=1, times=1)})
    with talk(firecracker, folder) as vm:
        start(vm)
        assert [vm.patch("/vm", state=state) for state in ("Paused", "Resumed", "Paused")] == [204, 204, 500]
        assert vm.state == "Running"
        assert vm.patch("/vm", state="Paused") == 204
    assert violations(bin_folder / RECORD) == []


@pytest.mark.parametrize(("how", "done"), [("die", False), ("die after", True)])
def test_a_fault_kills_the_process(firecracker: Path, folder: Path, bin_folder: Path, how: Any, done: bool) -> None:
    with talk(firecracker, folder) as vm:
        start(vm)
        assert vm.patch("/vm", state="Paused") == 204
        put_faults(bin_folder, {"PUT /snapshot/create": Fault(how)})
        with pytest.raises(OSError, match=r"closed|reset"):
            capture(vm)
        assert vm.exit_code() == -signal.SIGKILL
    assert (folder / "memory").exists() is done


def test_a_fault_leaves_a_call_without_an_answer(firecracker: Path, folder: Path, bin_folder: Path) -> None:
    put_faults(bin_folder, {"GET /version": Fault("hang")})
    with talk(firecracker, folder) as vm, connect(folder / "api.sock") as asking:
        asking.settimeout(0.2)
        asking.sendall(b"GET /version HTTP/1.1\r\n\r\n")
        with pytest.raises(TimeoutError):
            asking.recv(1)
        assert vm.process.poll() is None


def test_a_full_disk_loses_nothing(firecracker: Path, folder: Path, bin_folder: Path) -> None:
    put_faults(bin_folder, {"PUT /snapshot/create": Fault("full", times=1)})
    with talk(firecracker, folder) as vm:
        start(vm)
        assert vm.patch("/vm", state="Paused") == 204
        body = {"snapshot_path": "state", "mem_file_path": "memory", "snapshot_type": "Diff"}
        status, answer = vm.ask("PUT", "/snapshot/create", body)
        assert status == 400
        assert "No space left on device" in answer["fault_message"]
        sleep(vm)
    with talk(firecracker, folder) as vm:
        wake(vm)
    assert violations(bin_folder / RECORD) == []


def test_another_version_loads_only_its_own_snapshots(firecracker: Path, folder: Path, tmp_path: Path) -> None:
    newer = binary(tmp_path / "newer", "1.17.0-dev")
    told = [subprocess.run([newer, flag], capture_output=True, text=True, check=True).stdout for flag in TOLD]
    assert [each.splitlines()[0] for each in told] == list(TOLD.values())
    with talk(newer, folder) as vm:
        start(vm)
        sleep(vm)
    with talk(firecracker, folder) as vm:
        assert vm.put("/snapshot/load", **LOAD) == 400
        assert vm.exit_code() == 1
    with talk(newer, folder) as vm:
        wake(vm, huge_pages="Snapshot")


TOLD: Final = {"--version": "Firecracker v1.17.0-dev", "--snapshot-version": "v11.0.0"}
