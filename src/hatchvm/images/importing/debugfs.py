"""Asking debugfs (e2fsprogs) about disks of strangers: what it says is bytes, bounded in number and in time."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

from hatchvm.base.errors import Invalid, Unsupported
from hatchvm.base.units import MIB, format_bytes

#: A damaged file system may keep it going for ever.
_MAX_CPU_S: Final = 120


def read(disk: Path, start: int, command: str, target: Path, limit: int) -> None:
    """Write to `target` what a command prints about the ext4 that begins at byte `start` of a disk.

    Raises Invalid for more than `limit` bytes, and for a file system that it cannot stand.
    """
    # The offset is an option in the name, where a folder's name could be taken for one, too.
    argv = ["prlimit", f"--cpu={_MAX_CPU_S}", "debugfs", "-R", command, f"{disk.name}?offset={start}"]
    search = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    try:
        process = subprocess.Popen(
            argv,
            cwd=disk.parent,
            env={**os.environ, "PATH": search, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise Unsupported("importing needs debugfs and prlimit: apt-get install e2fsprogs util-linux") from error
    with process, target.open("wb") as file:
        assert process.stdout is not None
        left = limit
        while data := process.stdout.read(min(MIB, left + 1)):
            left -= len(data)
            if left < 0:
                process.kill()
                raise Invalid(f"{command} finds more than {format_bytes(limit)}")
            file.write(data)
    if process.returncode != 0:
        raise Invalid(f"its file system is damaged: {command} does not succeed")
