"""Running debugfs (e2fsprogs) over disks of strangers: what it says is bytes, bounded in number and in time."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Final

from hatchvm.base.errors import Internal, Invalid, Unsupported
from hatchvm.base.units import MIB, format_bytes

#: A damaged file system may keep it going for ever.
_MAX_CPU_S: Final = 120
_MAX_COMPLAINTS: Final = 2000


def execute(script: Path, disk: Path, env: Mapping[str, str]) -> None:
    """Carry out the commands of a script on an ext4. Raises Internal with its complaints."""
    complaints = script.with_name("complaints")
    with complaints.open("wb") as file, _start(["debugfs", "-w", "-f", str(script), str(disk)], env, stderr=file):
        pass
    # It ends with 0 whatever happens; after its version it is silent when all is well.
    said = complaints.read_text("utf-8", errors="replace")
    wrong = [line for line in said.splitlines() if not line.startswith("debugfs 1.")]
    if wrong:
        raise Internal("writing the root disk failed", detail="\n".join(wrong)[-_MAX_COMPLAINTS:])


def read(disk: Path, start: int, command: str, target: Path, limit: int) -> None:
    """Write to `target` what a command prints about the ext4 that begins at byte `start` of a disk.

    Raises Invalid for more than `limit` bytes, and for a file system that it cannot stand.
    """
    # The offset is an option in the name, where a folder's name could be taken for one, too.
    argv = ["prlimit", f"--cpu={_MAX_CPU_S}", "debugfs", "-R", command, f"{disk.name}?offset={start}"]
    process = _start(argv, {}, stdout=subprocess.PIPE, folder=disk.parent)
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


def _start(
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    stdout: int = subprocess.DEVNULL,
    stderr: int | BinaryIO = subprocess.DEVNULL,
    folder: Path | None = None,
) -> subprocess.Popen[bytes]:
    search = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    try:
        return subprocess.Popen(
            argv,
            cwd=folder,
            env={**os.environ, "PATH": search, "LC_ALL": "C", **env},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
    except FileNotFoundError as error:
        raise Unsupported("importing needs debugfs and prlimit: apt-get install e2fsprogs util-linux") from error
