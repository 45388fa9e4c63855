"""The daemon with Firecracker, as a user starts it on a host with a bridge. All is real but the virtual machine: the
stand-in's guest is on the bridge, on its disk, and in its memory, and writes down whatever would have harmed a real
one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from hatchvm.cli.child import ChildDaemon
from hatchvm.client import Client
from hatchvm.node import lazy
from hatchvm.pager import mount
from hatchvm.testing.firecracker import binary as standin
from hatchvm.testing.guest import Guest, create_guest, wait_for

HATCHVM: Final = str(Path(sys.executable).with_name("hatchvm"))
pytestmark = [
    pytest.mark.vm,
    pytest.mark.xdist_group("vm"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a bridge needs root"),
    pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="the daemon looks for /dev/kvm"),
]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a stand-in for the newest version that is described; the conformance suite has the oldest."""
    return standin.binary(tmp_path_factory.mktemp("standin"), version="1.17.0-dev").parent


@pytest.fixture(scope="module")
def house(played: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChildDaemon]:
    space = f"hatch-{uuid.uuid4().hex[:8]}"
    settings = {
        "HATCH_LOG_LEVEL": "debug",
        "HATCH_VMM": "firecracker",
        "HATCH_FIRECRACKER_BIN": str(played / "firecracker"),
        "HATCH_JAIL": "off",
        "HATCH_NETWORK": "bridge",
        "HATCH_NETNS": space,
        "HATCH_BRIDGE_NAME": "fce2e0",
        "HATCH_BRIDGE_CIDR": "198.18.0.1/24",
    }
    child = ChildDaemon(tmp_path_factory.mktemp("firecracker") / "data", settings)
    try:
        child.start()
        yield child
    finally:
        child.end()
        subprocess.run([HATCHVM, "network", "remove"], env=os.environ | settings, check=True)


@pytest.fixture(scope="module")
def vm(house: ChildDaemon) -> Guest:
    with house.client() as client:
        return create_guest(client, house, "counter", mem_mib=64)


@pytest.fixture
def client(house: ChildDaemon) -> Iterator[Client]:
    with house.client() as client:
        yield client


@pytest.fixture(autouse=True)
def _unharmed(played: Path) -> Iterator[None]:
    """Nothing was asked that a Firecracker refuses, and no guest found what it had not left."""
    yield
    record = played / standin.RECORD
    lines = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    assert [line for line in lines if line.get("violations") or "violation" in line] == []


def forget(vm: Guest) -> None:
    """The VM sleeps, its snapshot is stored, and this host has nothing else of it."""
    vm.sleep()
    for path in (vm.paths.memory, vm.paths.state, vm.paths.saved, vm.paths.disk):
        path.unlink()


def test_it_answers_sleeps_and_wakes(vm: Guest) -> None:
    count = vm.count()
    for _ in range(2):
        vm.sleep()
        assert not vm.paths.box.exists()
        count += 1
        assert vm.count() == count


def test_a_daemon_that_was_killed_takes_it_back(vm: Guest) -> None:
    count, pid = vm.count(), vm.pid()
    vm.daemon.kill()
    vm.daemon.start()
    assert vm.pid() == pid
    assert vm.count() == count + 1
    vm.sleep()
    assert vm.count() == count + 2


def test_it_wakes_from_the_store_by_page_faults(vm: Guest) -> None:
    if (trouble := mount.probe()) is not None:
        pytest.skip(trouble)
    count = vm.count()
    for _ in range(2):
        forget(vm)
        count += 1
        assert vm.count() == count
        assert lazy.find(vm.paths) is not None
        vm.sleep()
        assert lazy.find(vm.paths) is None
        count += 1
        assert vm.count() == count


def test_what_did_not_change_is_not_stored_again(vm: Guest, client: Client) -> None:
    vm.count()
    first = vm.sleep()
    vm.count()
    second = vm.sleep()
    assert vm.paths.changed.exists()
    assert second["id"] != first["id"]
    stored = {each["id"]: each["stored_bytes"] for each in client.list_snapshots(vm.id)}
    assert stored[second["id"]] < 64 * 1024 * 1024


def test_an_end_of_its_own_is_told_from_a_crash(vm: Guest, client: Client) -> None:
    vm.count()
    os.kill(vm.pid(), 9)
    wait_for(lambda: vm.state() == "error", "the crash is noticed")
    client.start_vm(vm.id)
    assert vm.count() == 1, "its memory is lost, its disk boots"
    client.stop_vm(vm.id)
    assert vm.state() == "stopped"
    client.start_vm(vm.id)
    assert vm.count() == 1
