"""A disk that is full: no VM is created, none is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hatchvm.cli.child import ChildDaemon
from hatchvm.client import ApiError
from hatchvm.testing.guest import MEM_MIB, PAGE, Guest, create_guest, user_data

pytestmark = [
    pytest.mark.vm,
    pytest.mark.xdist_group("vm"),
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system, which takes root"),
]

MIB = 1024 * 1024
DISK_MIB = MEM_MIB + 72


@pytest.fixture(scope="module")
def cramped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChildDaemon]:
    """Its VMs lie on a small file system that only it and its children see."""
    data = tmp_path_factory.mktemp("cramped") / "data"
    vms = data / "vms"
    vms.mkdir(parents=True)
    mounted = f'mount -t tmpfs -o size={DISK_MIB}m small "{vms}" && exec "$@"'
    daemon = ChildDaemon(data, {}, prefix=["unshare", "-m", "sh", "-c", mounted, "sh"])
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.end()


class Disk:
    """The small file system, seen from outside of its namespace."""

    def __init__(self, daemon: ChildDaemon) -> None:
        self.root = Path(f"/proc/{daemon.pid}/root{daemon.paths.vms}")
        self._filler = self.root / "vm-filler"

    def fill(self, *, but: int = 0) -> None:
        """Leave `but` bytes."""
        space = os.statvfs(self.root)
        with self._filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, space.f_bavail * space.f_frsize - but)

    def clear(self) -> None:
        self._filler.unlink()

    def reserve(self, guest: Guest) -> None:
        """Give a guest's memory the room it has not taken yet: what this test is about is its state."""
        with (self.root / guest.id / "memory").open("r+b") as memory:
            os.posix_fallocate(memory.fileno(), 0, MEM_MIB * MIB)

    def folders(self) -> list[str]:
        return sorted(path.name for path in self.root.iterdir() if path.is_dir())


@pytest.mark.parametrize("left", [0, 300 * 1024, 8 * MIB])
def test_no_vm_is_created(cramped: ChildDaemon, left: int) -> None:
    disk = Disk(cramped)
    disk.fill(but=left)
    try:
        with cramped.client() as client:
            with pytest.raises(ApiError) as error:
                client.create_vm(mem_mib=MEM_MIB)
            assert error.value.status == 503
            assert "disk" in str(error.value)
            assert client.list_vms() == []
        assert disk.folders() == []
    finally:
        disk.clear()


def test_a_vm_that_cannot_be_saved_runs_on(cramped: ChildDaemon) -> None:
    disk = Disk(cramped)
    with cramped.client() as client:
        guest = create_guest(client, cramped, "saved", mem_mib=MEM_MIB, user_data=user_data("none"))
        assert guest.text() == PAGE.strip()
        count = guest.count()
        disk.reserve(guest)
        disk.fill()
        try:
            with pytest.raises(ApiError) as error:
                client.snapshot_vm(guest.id)
        finally:
            disk.clear()
        assert error.value.status == 503
        assert "disk is full" in str(error.value)
        vm = client.get_vm(guest.id)
        assert (vm["state"], client.list_snapshots(guest.id)) == ("running", [])
        assert "disk is full" in vm["state_reason"]
        assert guest.count() == count + 1
        assert client.snapshot_vm(guest.id)["status"] == "committed"
        assert guest.count() == count + 2
