"""Disks that a Firecracker can be given: whole, sparse, and gone if they could not be made."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path
from typing import Final

import pytest

from hatchvm.base.errors import Exhausted, Internal, Unavailable, Unsupported
from hatchvm.base.files import allocated_bytes
from hatchvm.vmm.firecracker import disk as disks

MIB: Final = 2**20
CONTENT: Final = os.urandom(100_000)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """64 MiB with little in the middle."""
    path = tmp_path / "base"
    with path.open("wb") as file:
        file.truncate(64 * MIB)
        file.seek(20 * MIB)
        file.write(CONTENT)
    return path


def qcow2(base: Path) -> Path:
    path = base.with_suffix(".qcow2")
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(base), str(path)], check=True)
    return path


def test_a_raw_disk_is_copied_with_its_holes(base: Path, tmp_path: Path) -> None:
    disks.create(base, "raw", tmp_path / "disk")
    assert (tmp_path / "disk").read_bytes() == base.read_bytes()
    assert allocated_bytes(tmp_path / "disk") < MIB


def test_a_qcow2_becomes_raw(base: Path, tmp_path: Path) -> None:
    disks.create(qcow2(base), "qcow2", tmp_path / "disk")
    assert (tmp_path / "disk").read_bytes() == base.read_bytes()
    assert allocated_bytes(tmp_path / "disk") < MIB


def test_without_a_base_the_disk_is_empty(tmp_path: Path) -> None:
    disks.create(None, "raw", tmp_path / "disk")
    assert (tmp_path / "disk").stat().st_size == 8 * 2**30
    assert allocated_bytes(tmp_path / "disk") == 0


def test_the_base_is_read_only_as_far_as_we_are_concerned(base: Path, tmp_path: Path) -> None:
    before = base.stat()
    disks.create(base, "raw", tmp_path / "disk")
    with (tmp_path / "disk").open("r+b") as file:
        file.write(b"written")
    assert base.read_bytes()[:7] == bytes(7)
    assert base.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, Exhausted), (errno.EDQUOT, Exhausted), (errno.EIO, Unavailable)],
)
def test_a_copy_that_fails_midway_leaves_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    def fail(_source: int, _target: int, *_: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "copy_file_range", fail)
    with pytest.raises(kind):
        disks.create(base, "raw", tmp_path / "disk")
    assert not (tmp_path / "disk").exists()


def test_a_missing_base_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="No such file"):
        disks.create(tmp_path / "nothing", "raw", tmp_path / "disk")


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ("echo 'error while writing: No space left on device' >&2; exit 1", Exhausted),
        ("echo 'not a qcow2' >&2; exit 1", Internal),
    ],
)
def test_a_conversion_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, kind: type[Exception]
) -> None:
    _program(tmp_path, monkeypatch, f"echo begun > {tmp_path}/disk; {script}")
    with pytest.raises(kind):
        disks.create(tmp_path / "base", "qcow2", tmp_path / "disk")
    assert not (tmp_path / "disk").exists()


def test_without_qemu_img_a_qcow2_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unsupported, match="qemu-utils"):
        disks.create(tmp_path / "base", "qcow2", tmp_path / "disk")


def _program(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "qemu-img"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
