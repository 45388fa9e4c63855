"""Disks with partitions, and without; kernels found, hostile disks refused."""

from __future__ import annotations

import gzip
import io
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hatchvm.base.errors import Invalid
from hatchvm.domain.image import Boot
from hatchvm.images import cpio
from hatchvm.images.importing import cloud
from hatchvm.images.importing.initrd import has_module
from hatchvm.images.importing.partitions import Partition, ext4_partitions
from hatchvm.images.tree import Tree
from hatchvm.testing.images import disks

MIB = 2**20


def ext4(folder: Path, files: dict[str, bytes]) -> bytes:
    """A small file system with these files."""
    image, commands = folder / "ext4", []
    subprocess.run(["/sbin/mke2fs", "-q", "-F", str(image), "2M"], check=True, capture_output=True)
    for number, (name, content) in enumerate(files.items()):
        (folder / str(number)).write_bytes(content)
        *folders, file = name.split("/")
        commands += [line for part in folders for line in (f"mkdir {part}", f"cd {part}")]
        commands += [f"write {folder / str(number)} {file}", "cd /"]
    (folder / "commands").write_text("\n".join(commands))
    subprocess.run(["/sbin/debugfs", "-w", "-f", folder / "commands", image], check=True, capture_output=True)
    content = image.read_bytes()
    image.unlink()
    return content


def initrd(*names: str) -> bytes:
    tree = Tree()
    for name in names:
        tree.file(f"lib/modules/{name}", b"x")
    return cpio.archive(tree)


WITH_VIRTIO = gzip.compress(initrd("virtio_mmio.ko.xz"))


def disk(folder: Path, *partitions: bytes) -> Path:
    head, end, starts = disks.gpt([len(content) for content in partitions])
    with (folder / "disk").open("wb") as file:
        file.write(head)
        for start, content in zip(starts, partitions, strict=True):
            file.seek(start)
            file.write(content)
        file.seek(-(-file.tell() // MIB) * MIB)
        file.write(end)
    return folder / "disk"


def extracted(disk: Path) -> tuple[Boot, list[str]]:
    said: list[str] = []
    return cloud.extract(disk, said.append), said


ROOT = {"etc/os": b"", "usr/x": b""}


def test_the_newest_kernel_with_an_initrd(tmp_path: Path) -> None:
    kernels = {
        "boot/vmlinuz-6.9.9-1-cloud": b"nine",
        "boot/initrd.img-6.9.9-1-cloud": b"old",
        "boot/vmlinuz-6.10.0-2-cloud": b"ten",
        "boot/initrd.img-6.10.0-2-cloud": WITH_VIRTIO,
        "boot/vmlinuz-6.11.0": b"has no initrd",
        "boot/vmlinuz-0-rescue-6.12": b"rescue",
        "boot/initramfs-0-rescue-6.12.img": b"rescue",
    }
    boot, said = extracted(disk(tmp_path, ext4(tmp_path, {"x": b""}), ext4(tmp_path, ROOT | kernels)))
    assert boot.kernel.read_bytes() == b"ten"
    assert boot.initrd
    assert boot.initrd.read_bytes() == WITH_VIRTIO
    assert boot.boot_args.endswith(" root=/dev/vda2 rw")
    assert said == ["kernel 6.10.0-2-cloud of /dev/vda2, root file system on /dev/vda2"]


def test_a_boot_partition_of_its_own(tmp_path: Path) -> None:
    kernels = {"vmlinuz-6.1": b"k", "initramfs-6.1.img": initrd("ext4.ko"), "config-6.1": b"#\nCONFIG_VIRTIO_MMIO=y\n"}
    boot, said = extracted(disk(tmp_path, ext4(tmp_path, ROOT), ext4(tmp_path, kernels)))
    assert boot.boot_args.endswith(" root=/dev/vda1 rw")
    assert boot.kernel.read_bytes() == b"k"
    assert len(said) == 1


@pytest.mark.parametrize(
    ("content", "note"), [(initrd("ext4.ko"), "WARNING"), (b"\x02\x21\x4c\x18 lz4", "could not be told")]
)
def test_an_initrd_without_virtio_mmio_is_told(content: bytes, note: str, tmp_path: Path) -> None:
    files = ROOT | {"boot/vmlinuz-1": b"k", "boot/initrd.img-1": content}
    _, said = extracted(disk(tmp_path, ext4(tmp_path, files)))
    assert note in said[1]


def test_a_bare_file_system(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(ext4(tmp_path, ROOT | {"boot/vmlinuz-1": b"k", "boot/initrd.img-1": WITH_VIRTIO}))
    boot, _ = extracted(tmp_path / "disk")
    assert boot.boot_args.endswith(" root=/dev/vda rw")


def test_disks_that_cannot_be_booted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for files, reason in ((ROOT, "no kernel in /boot"), ({"boot/vmlinuz-1": b"k"}, "no ext4 root file system")):
        with pytest.raises(Invalid, match=reason):
            extracted(disk(tmp_path, ext4(tmp_path, files)))
    monkeypatch.setattr(cloud, "_MAX_KERNEL_BYTES", 5)
    with pytest.raises(Invalid, match="more than 5 B"):
        extracted(disk(tmp_path, ext4(tmp_path, ROOT | {"boot/vmlinuz-1": b"123456"})))


def test_a_damaged_file_system_is_refused(tmp_path: Path) -> None:
    content = bytearray(ext4(tmp_path, ROOT | {"boot/vmlinuz-1": b"k"}))
    content[2048:] = b"\xff" * (len(content) - 2048)
    with pytest.raises(Invalid):
        extracted(disk(tmp_path, bytes(content)))


def test_an_mbr(tmp_path: Path) -> None:
    content = ext4(tmp_path, ROOT)
    entry = struct.pack("<B3sB3sII", 0x80, b"", 0x83, b"", 2048, len(content) // 512)
    image = bytes(446) + bytes(16) + entry + bytes(32) + b"\x55\xaa"
    image = image.ljust(MIB, b"\0") + content
    assert ext4_partitions(io.BytesIO(image), len(image)) == [Partition(2, MIB, len(content))]
    assert ext4_partitions(io.BytesIO(image), len(image) - 1) == []


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 2000))
def test_any_partition_table_is_read_to_its_end(noise: bytes, at: int) -> None:
    head, end, _ = disks.gpt([MIB, 2 * MIB])
    image = bytearray(head + end)
    image[at : at + len(noise)] = noise
    ext4_partitions(io.BytesIO(bytes(image)), len(image))


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_initrd_is_read_to_its_end(noise: bytes) -> None:
    for prefix in (b"", initrd("x"), b"070701", b"\x1f\x8b"):
        assert has_module(io.BytesIO(prefix + noise), "virtio_mmio") in (False, None)


def test_modules_are_found_in_every_part_of_an_initrd() -> None:
    early, wanted = initrd("early") + bytes(512), initrd("a.ko", "virtio_mmio.ko")
    for content in (wanted, gzip.compress(wanted), early + gzip.compress(wanted), early + wanted, WITH_VIRTIO):
        assert has_module(io.BytesIO(content), "virtio_mmio") is True
    assert has_module(io.BytesIO(early + gzip.compress(early)), "virtio_mmio") is False


def qcow2(folder: Path, *options: str) -> Path:
    path = folder / "image"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, str(path)], cwd=folder, check=True)
    return path


def test_hostile_qcow2(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(MIB))
    for options, reason in (
        (("-b", "secret", "-F", "raw"), "with a backing file"),
        (("-o", "data_file=secret,data_file_raw=on,size=1M"), "external data file"),
        (("-o", "size=1T"), "has 1.0 TiB; --max-size"),
    ):
        with pytest.raises(Invalid, match=reason):
            cloud.take_disk(qcow2(tmp_path, *options), tmp_path / "target", 32 * 1024 * MIB)
    assert not (tmp_path / "target").exists()


def test_a_disk_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(MIB) + b"end".ljust(512))
    cloud.take_disk(tmp_path / "raw", tmp_path / "one", 2 * MIB)
    packing = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(tmp_path / "raw"), str(tmp_path / "image")]
    subprocess.run(packing, check=True)
    cloud.take_disk(tmp_path / "image", tmp_path / "two", 2 * MIB)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == (tmp_path / "raw").read_bytes()
    with pytest.raises(Invalid, match="--max-size allows more"):
        cloud.take_disk(tmp_path / "raw", tmp_path / "three", MIB)
