"""What users get wrong: a clear sentence with the right status, and nothing is left behind."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hatchvm.cli.child import ChildDaemon
from hatchvm.client import ApiError, Client
from hatchvm.testing.guest import MEM_MIB, Guest, wait_for

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("vm")]


@pytest.fixture(autouse=True)
def nothing_is_left(daemon: ChildDaemon) -> Iterator[None]:
    """The same VMs, folders and images before and after. A folder that is gone had its process ended."""

    def everything() -> list[list[str]]:
        with daemon.client() as client:
            vms = [vm["id"] for vm in client.list_vms()]
        folders = (daemon.paths.vms, daemon.paths.images)
        return [sorted(vms), *(sorted(path.name for path in folder.glob("*")) for folder in folders)]

    before = everything()
    yield
    assert everything() == before


def refused(error: pytest.ExceptionInfo[ApiError], status: int, *words: str) -> None:
    assert (error.value.status, [word for word in words if word not in str(error.value)]) == (status, [])


@pytest.fixture
def tiny(client: Client) -> Iterator[dict[str, str]]:
    """Where the files of the built-in image are."""
    image = client.get_image("tiny")
    yield {"kernel": image["kernel_path"], "rootfs": str(image["rootfs_path"]), "initrd": str(image["initrd_path"])}


class TestImages:
    def test_a_missing_kernel(self, client: Client, tiny: dict[str, str], tmp_path: Path) -> None:
        with pytest.raises(ApiError) as error:
            client.create_image(str(tmp_path / "nothing"), rootfs_path=tiny["rootfs"])
        refused(error, 400, "kernel_path", "No such file")

    def test_a_folder(self, client: Client, tiny: dict[str, str], tmp_path: Path) -> None:
        with pytest.raises(ApiError) as error:
            client.create_image(tiny["kernel"], rootfs_path=str(tmp_path))
        refused(error, 400, "rootfs_path", "is a directory")

    def test_no_kernel_at_all(self, client: Client, tiny: dict[str, str]) -> None:
        with pytest.raises(ApiError) as error:
            client.create_image(tiny["rootfs"], rootfs_path=tiny["rootfs"])
        refused(error, 400, "kernel_path", "not a Linux kernel")

    def test_a_disk_over_another_file(self, client: Client, tiny: dict[str, str], tmp_path: Path) -> None:
        overlay = tmp_path / "overlay.qcow2"
        make = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", tiny["rootfs"], "-F", "raw", str(overlay)]
        subprocess.run(make, check=True)
        with pytest.raises(ApiError) as error:
            client.create_image(tiny["kernel"], rootfs_path=str(overlay))
        refused(error, 400, "rootfs_path", "backing file")

    def test_a_kernel_that_cannot_boot(self, client: Client, tiny: dict[str, str], tmp_path: Path) -> None:
        """It looks like one and is cut off."""
        cut = tmp_path / "vmlinux"
        cut.write_bytes(Path(tiny["kernel"]).read_bytes()[:65536])
        image = client.create_image(str(cut), initrd_path=tiny["initrd"], name="cut")
        with pytest.raises(ApiError) as error:
            client.create_vm(image_id=image["id"], mem_mib=MEM_MIB)
        refused(error, 409, "the VMM did not start", "kernel")
        client.delete_image(image["id"])


def ended_vm(client: Client, vm_id: str) -> str:
    """Why it ended, or nothing."""
    vm = client.get_vm(vm_id)
    return vm["state_reason"] if vm["state"] in ("stopped", "error") else ""


class TestVMs:
    def test_more_memory_than_the_host_has(self, client: Client) -> None:
        with pytest.raises(ApiError) as error:
            client.create_vm(mem_mib=1024 * 1024)
        refused(error, 503, "mem_mib", "MiB")

    def test_boot_arguments_of_no_meaning_are_the_guests_affair(self, client: Client) -> None:
        vm = client.create_vm(boot_args="root=/dev/nowhere ,,= 'x\" -nodefaults \N{SNOWMAN}", mem_mib=MEM_MIB)
        assert vm["state"] == "running"
        client.delete_vm(vm["id"])

    def test_boot_arguments_that_make_the_kernel_panic(self, client: Client) -> None:
        vm = client.create_vm(boot_args="panic=-1 reboot=t rdinit=/nothing root=/dev/nothing", mem_mib=MEM_MIB)
        assert "kernel crashed" in wait_for(lambda: ended_vm(client, vm["id"]), "it ends")
        client.delete_vm(vm["id"])

    def test_boot_arguments_with_a_line_break(self, client: Client) -> None:
        with pytest.raises(ApiError) as error:
            client.create_vm(boot_args="quiet\n-kernel /etc/passwd")
        refused(error, 400, "boot_args", "control characters")

    def test_a_wrong_key(self, daemon: ChildDaemon) -> None:
        with Client(daemon.api, "wrong") as stranger, pytest.raises(ApiError) as error:
            stranger.create_vm()
        refused(error, 401, "key")

    def test_a_used_subdomain(self, guest: Guest, client: Client) -> None:
        with pytest.raises(ApiError) as error:
            client.create_route(guest.id, target_port=80, subdomain=guest.subdomain)
        refused(error, 409, 'subdomain "shared" is already in use')


@pytest.fixture(scope="module")
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[ChildDaemon]:
    """A node with one SSH port, and nowhere to store snapshots."""
    only = {"HATCH_SSH_PORT_MIN": str(port), "HATCH_SSH_PORT_MAX": str(port)}
    node = ChildDaemon(tmp_path_factory.mktemp("small") / "data", {**only, "HATCH_SNAPSHOT_STORE": "none"})
    try:
        node.start()
        yield node
    finally:
        node.end()


def test_a_stranger_on_the_only_ssh_port(small: ChildDaemon, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)), small.client() as client, pytest.raises(ApiError) as error:
        client.create_vm(mem_mib=MEM_MIB)
    refused(error, 503, f"{port}..{port}")
    assert not list(small.paths.vms.glob("*"))


def test_no_second_port_and_no_store(small: ChildDaemon, port: int) -> None:
    with small.client() as client:
        vm = client.create_vm(mem_mib=MEM_MIB)
        assert vm["ssh_port"] == port
        with pytest.raises(ApiError) as error:
            client.create_vm(mem_mib=MEM_MIB)
        refused(error, 503, f"{port}..{port}")
        with pytest.raises(ApiError) as error:
            client.snapshot_vm(vm["id"])
        refused(error, 503, "snapshot storage not configured")
        assert [(one["id"], one["state"]) for one in client.list_vms()] == [(vm["id"], "running")]
        assert [path.name for path in small.paths.vms.glob("*")] == [vm["id"]]
