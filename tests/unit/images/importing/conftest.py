"""What stands for the built-in image."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Path:
    """As much of the built-in image's disk as is taken from it; its busybox knows two names."""
    image, busybox, other = tmp_path / "tiny", tmp_path / "busybox", tmp_path / "other"
    busybox.write_text("#!/bin/sh\nprintf 'busybox\\ninit\\nsh\\n'\n")
    other.write_bytes(b"\x7fELF /lib64/ld-linux-x86-64.so.2\0 end")
    subprocess.run(["/sbin/mke2fs", "-q", "-F", str(image), "2M"], check=True, capture_output=True)
    folders = ("usr", "usr/bin", "usr/sbin", "usr/lib", "usr/lib/x86_64-linux-gnu")
    commands = [f"mkdir {folder}" for folder in folders]
    for folder, source, name in (
        ("/usr/bin", busybox, "busybox"),
        ("/usr/sbin", other, "dropbear"),
        ("/usr/lib", other, "sftp-server"),
        ("/usr/lib/x86_64-linux-gnu", other, "ld-linux-x86-64.so.2"),
        ("/usr/lib/x86_64-linux-gnu", other, "libc.so.6"),
    ):
        commands += [f"cd {folder}", f"write {source} {name}"]
    (tmp_path / "commands").write_text("\n".join(commands))
    subprocess.run(["/sbin/debugfs", "-w", "-f", tmp_path / "commands", image], check=True, capture_output=True)
    return image
