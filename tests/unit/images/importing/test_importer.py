"""A source of every kind, from its file to the files of an image."""

from __future__ import annotations

import gzip
import lzma
import shutil
import subprocess
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from hatchvm.base.errors import Exhausted, Invalid
from hatchvm.domain.image import Boot
from hatchvm.images.importing.importer import Importer
from hatchvm.testing.images.containers import docker_archive, member, oci_layout, tar

SYSTEM = tar([member("sbin/init", data=b"#!/bin/sh", mode=0o755)])
APP = tar([member("app", data=b"1", mode=0o755)])

Import = Callable[..., tuple[Boot, list[str]]]


@pytest.fixture
def import_(tmp_path: Path, tiny_disk: Path) -> Import:
    """Imports a path, or bytes, into a folder of its own."""
    (tmp_path / "initrd").write_bytes(b"tiny's initrd ")
    boot = Boot(
        kernel=tmp_path / "kernel", initrd=tmp_path / "initrd", rootfs=tiny_disk, rootfs_format="raw", boot_args="x"
    )
    works = iter(range(100))

    def run(source: Path | bytes, max_bytes: int = 2**30, boot_args: str | None = None) -> tuple[Boot, list[str]]:
        work = tmp_path / f"work {next(works)}"
        work.mkdir()
        if isinstance(source, bytes):
            path = work.with_suffix(".source")
            path.write_bytes(source)
        else:
            path = source
        said: list[str] = []
        return Importer(work, lambda: boot, said.append, max_bytes).run(path, boot_args), said

    return run


def files(boot: Boot, folder: Path) -> str:
    """The names in the root of an imported disk."""
    assert boot.rootfs
    assert boot.rootfs_format == "qcow2"
    raw = folder / "read"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(boot.rootfs), str(raw)], check=True)
    return subprocess.run(["/sbin/debugfs", "-R", "ls -p /", raw], capture_output=True, text=True, check=True).stdout


def starts(boot: Boot) -> bytes:
    """The last line of the initrd's script."""
    assert boot.initrd
    content = boot.initrd.read_bytes()
    assert content.startswith(b"tiny's initrd 070701")
    return content.partition(b"exec switch_root /root ")[2].partition(b"\n")[0]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_a_root_file_system_with_an_init(pack: Callable[[bytes], bytes], import_: Import, tmp_path: Path) -> None:
    boot, said = import_(pack(SYSTEM))
    assert starts(boot) == b"/sbin/init"
    assert "/.hatch/" not in files(boot, tmp_path)
    assert "it starts its own init" in said
    assert boot.kernel == tmp_path / "kernel"
    assert "console=ttyS0" in boot.boot_args


def test_a_root_file_system_without_one(import_: Import, tmp_path: Path) -> None:
    boot, _ = import_(APP)
    assert starts(boot) == b"/.hatch/bin/init"
    assert {"app", ".hatch", "proc", "tmp"} <= set(files(boot, tmp_path).split("/"))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_container_with_an_init_still_runs_its_command(
    pack: Callable[[bytes], bytes], import_: Import, tmp_path: Path
) -> None:
    boot, said = import_(pack(docker_archive([SYSTEM, APP], Cmd=["/app"])), boot_args="mine")
    assert starts(boot) == b"/.hatch/bin/init"
    assert boot.boot_args == "mine"
    assert said[-5:-3] == ["layer 1 of 2", "layer 2 of 2"]
    boot, _ = import_(pack(docker_archive([SYSTEM], Cmd=["/sbin/init"])))
    assert starts(boot) == b"/sbin/init"


def test_the_same_source_gives_the_same_image(import_: Import, tmp_path: Path) -> None:
    layout = oci_layout(tmp_path / "layout", [SYSTEM, APP], Cmd=["/app"])
    one, two = import_(layout)[0], import_(layout)[0]
    assert one.rootfs and two.rootfs and one.initrd and two.initrd
    assert one.rootfs.read_bytes() == two.rootfs.read_bytes()
    assert one.initrd.read_bytes() == two.initrd.read_bytes()


def test_a_refusal_names_the_file_and_the_reason(import_: Import, tmp_path: Path) -> None:
    (tmp_path / "bad.tar").write_bytes(tar([member("a/../../b")]))
    with pytest.raises(Invalid, match=r"bad\.tar cannot be imported: its entry .* leads out of its folder"):
        import_(tmp_path / "bad.tar")
    with pytest.raises(Invalid, match="unpacks to more than 1000 B; --max-size allows more"):
        import_(gzip.compress(SYSTEM), max_bytes=1000)


def test_a_full_disk_stays_as_it_is(import_: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    Usage = namedtuple("Usage", ["free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(512 * 2**20 + 100))
    with pytest.raises(Exhausted, match="not enough room"):
        import_(SYSTEM)
    with pytest.raises(Exhausted, match="not enough room"):
        import_(bytes(510) + b"\x55\xaa" + b"x" * 1500)
