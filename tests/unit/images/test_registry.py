"""Registering images: what is refused and in which words, what is kept and in which shape."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

from hatchvm.base.copying import copy_sparse
from hatchvm.base.errors import Exhausted, Internal, Invalid
from hatchvm.base.files import allocated_bytes
from hatchvm.domain.image import Boot
from hatchvm.images import registry

KERNEL = bytes(0x1FE) + b"\x55\xaa" + bytes(2) + b"HdrS" + bytes(1000)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "kernel").write_bytes(KERNEL)
    (tmp_path / "vmlinux").write_bytes(b"\x7fELF" + bytes(100))
    (tmp_path / "initrd").write_bytes(b"070701")
    (tmp_path / "disk").write_bytes(b"\1" * 4096)
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("not a kernel")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "socket-to-nowhere").symlink_to(tmp_path / "missing")
    return tmp_path


def qcow2(path: Path, *options: str) -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path), "1M"], check=True)
    return path


@pytest.mark.parametrize("kernel", ["kernel", "vmlinux"])
async def test_an_image_is_copied_under_its_digest(files: Path, kernel: str) -> None:
    images = files / "data" / "images"
    boot, digest, size = await registry.register(
        images, kernel=files / kernel, initrd=files / "initrd", rootfs=files / "disk", boot_args="quiet"
    )
    assert boot.kernel.read_bytes() == (files / kernel).read_bytes()
    assert boot.initrd is not None and boot.initrd.read_bytes() == b"070701"
    assert boot.rootfs is not None and boot.rootfs.read_bytes() == b"\1" * 4096
    assert {boot.kernel.parent, boot.initrd.parent, boot.rootfs.parent} == {images / digest}
    assert (boot.rootfs_format, boot.boot_args) == ("raw", "quiet")
    assert size == (files / kernel).stat().st_size + 6 + 4096
    assert [entry.name for entry in images.iterdir()] == [digest]


async def test_the_same_image_again_is_the_same_folder(files: Path) -> None:
    async def with_arguments(boot_args: str) -> tuple[Boot, str, int]:
        return await registry.register(
            files / "images", kernel=files / "kernel", initrd=files / "initrd", rootfs=None, boot_args=boot_args
        )

    first = await with_arguments("a")
    assert await with_arguments("a") == first
    other = await with_arguments("b")
    assert other[1] != first[1]
    assert len(list((files / "images").iterdir())) == 2


@pytest.mark.parametrize(
    ("field", "name", "why"),
    [
        ("kernel", "folder", "is a directory"),
        ("kernel", "missing", "cannot be opened: No such file or directory"),
        ("kernel", "empty", "is empty"),
        ("kernel", "fifo", "is not a regular file"),
        ("kernel", "text", "is not a Linux kernel"),
        ("kernel", "kernel/below", "cannot be opened: Not a directory"),
        ("initrd", "folder", "is a directory"),
        ("initrd", "empty", "is empty"),
        ("initrd", "socket-to-nowhere", "cannot be opened"),
        ("rootfs", "fifo", "is not a regular file"),
        ("rootfs", "empty", "is empty"),
    ],
)
async def test_a_wrong_file_is_named_and_leaves_nothing(files: Path, field: str, name: str, why: str) -> None:
    given = {"kernel": files / "kernel", "initrd": files / "initrd", "rootfs": files / "disk"} | {field: files / name}
    with pytest.raises(Invalid) as raised:
        await registry.register(files / "images", **given, boot_args="")
    assert str(raised.value).startswith(f"{field}_path: {files / name} {why}")
    assert not list((files / "images").iterdir())


async def test_a_path_with_a_zero_byte_is_no_path(files: Path) -> None:
    with pytest.raises(Invalid, match="kernel_path"):
        await registry.register(
            files / "images", kernel=Path("a\0b"), initrd=files / "initrd", rootfs=None, boot_args=""
        )


async def test_a_kernel_alone_is_not_an_image(files: Path) -> None:
    with pytest.raises(Invalid, match="initrd_path or rootfs_path"):
        await registry.register(files / "images", kernel=files / "kernel", initrd=None, rootfs=None, boot_args="")


async def test_a_qcow2_disk_is_known_by_its_magic(files: Path) -> None:
    boot, _, _ = await registry.register(
        files / "images", kernel=files / "kernel", initrd=None, rootfs=qcow2(files / "q"), boot_args=""
    )
    assert boot.rootfs_format == "qcow2"


def hostile_disks(folder: Path) -> dict[str, Path]:
    secret = folder / "secret"
    secret.write_bytes(b"\1" * 2**20)
    # Made by hand: qemu-img first measures how long a key takes here, which a busy machine makes it give up.
    patched = {"v9": (4, 9), "luks": (32, 2)}
    for name, (at, value) in patched.items():
        with qcow2(folder / name).open("r+b") as file:
            file.seek(at)
            file.write(struct.pack(">I", value))
    (folder / "short").write_bytes(b"QFI\xfb\0\0\0\3")
    return {
        "backing file": qcow2(folder / "backed", "-b", str(secret), "-F", "raw"),
        "external data file": qcow2(folder / "split", "-o", f"data_file={folder / 'data'},data_file_raw=on"),
        "encrypted": folder / "luks",
        "unknown version 9": folder / "v9",
        "cut short": folder / "short",
    }


async def test_a_disk_that_reaches_outside_itself_is_refused(files: Path) -> None:
    for why, disk in hostile_disks(files).items():
        with pytest.raises(Invalid, match=why) as raised:
            await registry.register(
                files / "images", kernel=files / "kernel", initrd=None, rootfs=disk, boot_args="quiet"
            )
        assert str(raised.value).startswith(f"rootfs_path: {disk} is a")
        assert not list((files / "images").iterdir())


async def test_a_full_disk_leaves_nothing(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(reader: int, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(registry, "copy_sparse", full)
    with pytest.raises(Exhausted, match="No space left on device"):
        await registry.register(
            files / "images", kernel=files / "kernel", initrd=files / "initrd", rootfs=None, boot_args=""
        )
    assert not list((files / "images").iterdir())


async def test_removing_is_complete_and_may_be_repeated(files: Path) -> None:
    _, digest, _ = await registry.register(
        files / "images", kernel=files / "kernel", initrd=files / "initrd", rootfs=None, boot_args=""
    )
    await registry.remove(files / "images", digest)
    await registry.remove(files / "images", digest)
    await registry.remove(files / "nowhere", digest)
    assert not list((files / "images").iterdir())
    with pytest.raises(Internal):
        await registry.remove(files / "images", "../folder")


async def test_what_a_killed_process_left_is_swept(files: Path) -> None:
    _, digest, _ = await registry.register(
        files / "images", kernel=files / "kernel", initrd=files / "initrd", rootfs=None, boot_args=""
    )
    (files / "images" / ".copy.killed" / "image").mkdir(parents=True)
    await registry.sweep(files / "images")
    assert [entry.name for entry in (files / "images").iterdir()] == [digest]


@pytest.mark.parametrize("shares_blocks", [True, False])
def test_a_copy_keeps_content_and_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares_blocks: bool) -> None:
    if not shares_blocks:
        refused = OSError(18, "Invalid cross-device link")
        monkeypatch.setattr(os, "copy_file_range", lambda *args: (_ for _ in ()).throw(refused))
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.seek(3 * 2**20)
        file.write(b"middle" * 1000)
        file.truncate(64 * 2**20)
    with source.open("rb") as file:
        copy_sparse(file.fileno(), tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    assert allocated_bytes(tmp_path / "target") < 2**20
