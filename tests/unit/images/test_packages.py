"""What is taken out of unpacked packages: modules in order, libraries, the kernel inside a kernel."""

from __future__ import annotations

import lzma
import struct
from pathlib import Path

import pytest

from hatchvm.base.errors import Unsupported
from hatchvm.images import kernel, libraries
from hatchvm.images.modules import Modules


def module(name: str, *depends: str) -> bytes:
    return b"\x7fELF...\0name=" + name.encode() + b"\0depends=" + ",".join(depends).encode() + b"\0retpoline=Y\0"


@pytest.fixture
def modules(tmp_path: Path) -> Modules:
    for folder in ("kernel/drivers/virtio", "kernel/fs"):
        (tmp_path / folder).mkdir(parents=True)
    drivers = tmp_path / "kernel/drivers/virtio"
    (drivers / "virtio.ko").write_bytes(module("virtio"))
    (drivers / "virtio_ring.ko").write_bytes(module("virtio_ring", "virtio"))
    (drivers / "virtio-rng.ko.xz").write_bytes(lzma.compress(module("virtio-rng", "virtio_ring", "virtio")))
    (tmp_path / "kernel/fs/isofs.ko").write_bytes(module("isofs", "no-such-module"))
    (tmp_path / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    return Modules(tmp_path)


def test_modules_come_after_what_they_need_uncompressed_and_once(modules: Modules) -> None:
    order = modules.load_order(["virtio_rng", "virtio", "ext4"])
    assert list(order) == ["virtio", "virtio_ring", "virtio_rng"]
    assert order["virtio_rng"] == module("virtio-rng", "virtio_ring", "virtio")


def test_a_missing_module_is_named(modules: Modules) -> None:
    with pytest.raises(Unsupported, match="no module no_such_module"):
        modules.load_order(["isofs"])


def test_libraries_are_followed_but_not_out_of_the_packages(tmp_path: Path) -> None:
    folder = tmp_path / "usr/lib"
    (folder / "gconv").mkdir(parents=True)
    (tmp_path / "program").write_bytes(b"\0liba.so.1\0")
    (folder / "liba.so.1.2").write_bytes(b"\0libb.so.6\0libmissing.so.1\0")
    (folder / "liba.so.1").symlink_to("liba.so.1.2")
    (folder / "libb.so.6").write_bytes(b"end")
    (folder / "libunused.so.1").write_bytes(b"unused")
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64/libb.so.6").symlink_to("/nonexistent/libb.so.6")
    needed = libraries.needed(tmp_path, [tmp_path / "program"])
    assert needed == {"liba.so.1": b"\0libb.so.6\0libmissing.so.1\0", "libb.so.6": b"end"}


def bzimage(payload: bytes) -> bytes:
    head = bytearray(0x400)
    head[0x1F1] = 1
    struct.pack_into("<II", head, 0x248, 16, len(payload))
    return bytes(head) + bytes(16) + payload + b"rest"


def test_an_lz4_kernel_is_unpacked_without_its_size(tmp_path: Path) -> None:
    (tmp_path / "bzimage").write_bytes(bzimage(b"\x02\x21\x4c\x18packed" + b"size"))
    fake = ("sh", "-c", 'test "$*" = "-d -q -f $4 $5" && cp "$4" "$5"', "lz4")
    kernel.unpack(tmp_path / "bzimage", tmp_path / "kernel", fake)
    assert (tmp_path / "kernel").read_bytes() == b"\x02\x21\x4c\x18packed"
    assert not (tmp_path / "vmlinux.lz4").exists()


def test_a_kernel_packed_otherwise_is_kept(tmp_path: Path) -> None:
    (tmp_path / "bzimage").write_bytes(bzimage(b"\xfd7zXZ"))
    kernel.unpack(tmp_path / "bzimage", tmp_path / "kernel", ("false",))
    assert (tmp_path / "kernel").read_bytes() == bzimage(b"\xfd7zXZ")
