"""Boxes on a real file system with real mounts, and what a real Firecracker sees from inside of one."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hatchvm.base.errors import Unavailable, Unsupported
from hatchvm.base.paths import VMPaths
from hatchvm.testing.net.wires import Lab, ip
from hatchvm.vmm.firecracker import mounts
from hatchvm.vmm.firecracker.box import Bare, Box, Entry, Limits
from hatchvm.vmm.firecracker.jail import Jail

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes mounts and users, which needs root")
UID = 1_900_000_000
LIMITS = Limits(vcpu_count=1, mem_mib=128)
JAIL = Jail(jailer=Path("jailer"), parent=None)
BINARY = Path("/opt/firecracker-1.16.1")
BOXES = [Bare(), pytest.param(JAIL, marks=needs_root)]


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[VMPaths]:
    paths = VMPaths(tmp_path / "vms" / "vm-0a1b")
    paths.root.mkdir(parents=True, mode=0o700)
    yield paths
    if os.geteuid() == 0:
        JAIL.clear(paths)


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    return write(tmp_path / "images" / "kernel", b"\x7fELF", 0o444)


@pytest.fixture
def abroad() -> Iterator[Path]:
    """A folder on another file system."""
    folder = Path(f"/dev/shm/hatch-{os.getpid()}")
    folder.mkdir()
    yield folder
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def write(path: Path, data: bytes, mode: int = 0o600) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    return path


def entries(paths: VMPaths, kernel: Path) -> list[Entry]:
    return [
        Entry("kernel", kernel, writable=False),
        Entry("disk", write(paths.disk, b"disk"), writable=True),
        Entry("console", paths.console, writable=True),
    ]


def mounted_in(folder: Path) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(folder) in line]


def below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("box", BOXES)
def test_files_go_by_plain_names_and_stay_where_they_are(box: Box, paths: VMPaths, kernel: Path) -> None:
    before = kernel.stat()
    box.furnish(paths, BINARY, entries(paths, kernel))
    assert (paths.box / "kernel").read_bytes() == b"\x7fELF"
    (paths.box / "disk").write_bytes(b"written inside")
    (paths.box / "console").write_bytes(b"said inside")
    assert paths.disk.read_bytes() == b"written inside" and paths.console.read_bytes() == b"said inside"
    assert {paths.disk.stat().st_uid, paths.console.stat().st_uid} == {box.uid(paths)}
    assert (kernel.stat().st_uid, kernel.stat().st_mode) == (before.st_uid, before.st_mode)
    box.settle(paths)
    for _ in range(2):
        box.clear(paths)
        assert below(paths.root) - {"uid"} == {"disk", "console.log"} and kernel.stat().st_nlink == 1


@pytest.mark.parametrize("box", BOXES)
def test_a_box_is_made_anew(box: Box, paths: VMPaths, kernel: Path) -> None:
    """The next Firecracker may be another, and finds nothing of the former one."""
    box.furnish(paths, BINARY, entries(paths, kernel))
    (paths.box / "api.sock").touch()
    box.furnish(paths, BINARY.with_name("firecracker"), entries(paths, kernel)[:2])
    assert {path.name for path in paths.box.iterdir()} == {"kernel", "disk"}


@needs_root
def test_a_vm_moves_into_a_jail_and_out_again(paths: VMPaths, kernel: Path) -> None:
    for box in (Bare(), JAIL, Bare()):
        box.furnish(paths, BINARY, entries(paths, kernel))
        assert {path.name for path in paths.box.iterdir()} == {"kernel", "disk", "console"}


@pytest.mark.parametrize("box", BOXES)
def test_a_file_that_is_not_there_leaves_nothing(box: Box, paths: VMPaths, kernel: Path) -> None:
    gone = [*entries(paths, kernel), Entry("seed", paths.seed, writable=False)]
    with pytest.raises(Unavailable, match="the VM's files could not be put before Firecracker"):
        box.furnish(paths, BINARY, gone)
    assert below(paths.root) - {"uid"} == {"disk", "console.log"}


@needs_root
@pytest.mark.parametrize("mode", [0o440, 0o646])
def test_what_is_shared_must_be_readable_by_all_and_writable_by_none(mode: int, paths: VMPaths, kernel: Path) -> None:
    kernel.chmod(mode)
    with pytest.raises(Unsupported, match="the VM's kernel must be readable by everyone"):
        JAIL.furnish(paths, BINARY, entries(paths, kernel))
    assert not paths.box.is_symlink() and not paths.jail.exists()


@needs_root
def test_what_lies_on_another_file_system_is_mounted(paths: VMPaths, kernel: Path, abroad: Path) -> None:
    shared, own = write(abroad / "rootfs", b"shared", 0o444), write(abroad / "disk", b"own")
    away = [Entry("rootfs", shared, writable=False), Entry("data", own, writable=True)]
    JAIL.furnish(paths, BINARY, [*away, *entries(paths, kernel)])
    (paths.box / "data").write_bytes(b"written inside")
    assert own.read_bytes() == b"written inside" and own.stat().st_uid == UID
    with pytest.raises(OSError, match="Read-only file system"):
        (paths.box / "rootfs").write_bytes(b"")
    assert shared.stat().st_uid == 0 and (paths.box / "rootfs").read_bytes() == b"shared"
    JAIL.settle(paths)
    assert not mounted_in(paths.root) and (paths.box / "disk").read_bytes() == b"disk"
    JAIL.furnish(paths, BINARY, away)  # a start that was given up is not settled
    JAIL.clear(paths)
    assert not mounted_in(paths.root) and not paths.jail.exists() and own.exists()
    with pytest.raises(Unavailable):
        JAIL.furnish(paths, BINARY, [*away, Entry("seed", paths.seed, writable=False)])
    assert not mounted_in(paths.root) and not paths.jail.exists()


@contextmanager
def shared_tree(folder: Path) -> Iterator[None]:
    """What is mounted and unmounted in the folder is so in all copies of it, as on hosts that systemd has booted."""
    subprocess.run(["mount", "--bind", folder, folder], check=True)
    try:
        subprocess.run(["mount", "--make-shared", folder], check=True)
        yield
    finally:
        while mounts.detach(folder):
            pass


@needs_root
def test_a_process_keeps_what_was_mounted_for_it(paths: VMPaths, abroad: Path) -> None:
    """The jailer copies the host's mounts as slaves of them."""
    away = Entry("data", write(abroad / "disk", b"own"), writable=True)
    with shared_tree(paths.root):
        JAIL.furnish(paths, BINARY, [away])
        inside = f"echo ready; read settled; cat {paths.box}/data"
        argv = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", inside]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None and process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            JAIL.settle(paths)
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.read() == "own"
        JAIL.clear(paths)


def real(name: str) -> Path:
    if os.geteuid() != 0:
        pytest.skip("a jail needs root")
    if name not in os.environ:
        pytest.skip(f"not run here: {name} is not set")
    return Path(os.environ[name])


def start(argv: list[str], cwd: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def put(paths: VMPaths, path: str, **body: object) -> int:
    """The status that Firecracker answers."""
    with socket.socket(socket.AF_UNIX) as api:
        folder = os.open(paths.box, os.O_PATH)
        try:
            api.connect(f"/proc/self/fd/{folder}/api.sock")
        finally:
            os.close(folder)
        data = json.dumps(body).encode()
        api.sendall(f"PUT {path} HTTP/1.1\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        return int(api.recv(4096).split()[1])


async def answering(paths: VMPaths, process: subprocess.Popen[bytes]) -> None:
    async with asyncio.timeout(20):
        while not (paths.box / "api.sock").is_socket():
            assert process.poll() is None
            await asyncio.sleep(0.005)


async def test_a_real_firecracker_sees_its_box_and_nothing_else(paths: VMPaths, kernel: Path, abroad: Path) -> None:
    binary, jail = real("HATCH_FIRECRACKER_BIN"), Jail(jailer=real("HATCH_JAILER_BIN"), parent=None)
    assert await jail.check(binary) == "jailed, without limits"
    data = Entry("data", write(abroad / "disk", b"own"), writable=True)
    with shared_tree(paths.root):
        jail.furnish(paths, binary, [*entries(paths, kernel), data])
        argv, cwd = jail.command(paths, binary, ["--api-sock", "api.sock"], LIMITS)
        process = start(argv, cwd)
        try:
            await answering(paths, process)
            jail.settle(paths)
            assert len(mounted_in(paths.root)) == 1  # that of the tree
            assert put(paths, "/logger", log_path="console", level="Debug") == 204
            assert put(paths, "/boot-source", kernel_image_path="kernel") == 204
            for name in ("disk", "data"):
                drive = {"drive_id": name, "path_on_host": name, "is_root_device": False, "is_read_only": False}
                assert put(paths, f"/drives/{name}", **drive) == 204
            root = Path(f"/proc/{process.pid}/root")
            assert below(root) == {
                *("kernel", "disk", "console", "data", "api.sock", binary.name, f"{binary.name}.pid", "run"),
                *("dev", "dev/kvm", "dev/net", "dev/net/tun", "dev/urandom", "dev/userfaultfd"),
            }
            lines = Path(f"/proc/{process.pid}/mountinfo").read_text().splitlines()
            assert {line.split()[4] for line in lines} == {"/", "/data", "/kernel"}  # another tree
            status = Path(f"/proc/{process.pid}/status").read_text()
            assert f"Uid:\t{UID}\t{UID}\t{UID}\t{UID}\n" in status and f"Gid:\t{UID}\t{UID}\t{UID}\t{UID}\n" in status
            assert "CapEff:\t0000000000000000\n" in status and "Groups:\t \n" in status
            assert Path(f"/proc/{process.pid}/cwd").samefile(paths.box)
            assert "boot-source" in paths.console.read_text() and kernel.stat().st_uid == 0
        finally:
            end(process)
            jail.clear(paths)
    assert below(paths.root) == {"disk", "console.log", "uid"}


async def test_a_real_firecracker_opens_its_tap_in_its_nest(paths: VMPaths) -> None:
    binary, jail = real("HATCH_FIRECRACKER_BIN"), Jail(jailer=real("HATCH_JAILER_BIN"), parent=None)
    lab = Lab()
    seat = lab.seat(2)
    try:
        await lab.network.open()
        nest = await lab.network.nest(seat)
        await nest.lay(jail.uid(paths))
        jail.furnish(paths, binary, [])
        argv, cwd = jail.command(paths, binary, ["--api-sock", "api.sock"], LIMITS)
        with nest.inside():
            process = start(argv, cwd)
        try:
            await answering(paths, process)
            card = {"iface_id": "eth0", "host_dev_name": str(seat.tap_name), "guest_mac": seat.guest_mac}
            assert put(paths, "/network-interfaces/eth0", **card) == 204
            await nest.plug(process.pid)
            await nest.close()
            described = ip("-n", lab.id, "-d", "link", "show", "dev", str(seat.tap_name))
            assert "master fcbr0" in described and f"user {UID} " in described
            assert Path(f"/proc/{process.pid}/ns/net").stat().st_ino != Path("/proc/self/ns/net").stat().st_ino
        finally:
            end(process)
            jail.clear(paths)
        assert seat.tap_name not in lab.links()
    finally:
        await lab.network.remove()
