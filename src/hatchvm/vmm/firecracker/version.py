"""Which Firecracker is installed. What it can be asked is the same for all that are new enough: see `requests`."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from hatchvm.base.errors import Unsupported


class Version(NamedTuple):
    """`1.17.0-dev` compares like `1.17.0`: it is described as if it were that."""

    major: int
    minor: int
    patch: int
    suffix: str = ""

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}{self.suffix}"

    @property
    def numbers(self) -> tuple[int, int, int]:
        return self[:3]


#: 1.16 brought `clock_realtime` and `vsock_override`; after a restore by 1.16.0 a guest's vsock may be dead for ever.
OLDEST: Final = Version(1, 16, 1)
_ANOTHER_API: Final = 2
_TIMEOUT_S: Final = 20
_VERSION: Final = re.compile(r"^(?:([A-Za-z]+) )?v(\d+)\.(\d+)\.(\d+)(\S*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Installed:
    """One Firecracker of this host. `snapshot_version`: of the format in which it writes device state."""

    path: Path
    version: Version
    snapshot_version: Version

    def loads(self, written: Version) -> bool:
        """True if it can load a state in format `written`."""
        return written.major == self.snapshot_version.major and written.minor <= self.snapshot_version.minor


def parse(text: str, program: str | None = None) -> Version | None:
    """The version in the first line that is nothing but one: `Firecracker v1.16.1`, `v10.0.0` without a program.

    Log lines may follow it. None if there is no such line.
    """
    for name, major, minor, patch, suffix in _VERSION.findall(text):
        if name == (program or ""):
            return Version(int(major), int(minor), int(patch), suffix)
    return None


def installed(binary: str) -> Installed:
    """Ask `binary`, a path or a name on PATH, who it is. Blocks for some milliseconds.

    Raises Unsupported if it is missing, does not run, or is a version that Hatch does not drive.
    """
    found = shutil.which(binary)
    if found is None:
        raise Unsupported(f"{binary} is not installed; see `hatchvm doctor`")
    path = Path(found).resolve()
    version = parse(say(path, "--version"), "Firecracker")
    if version is None:
        raise Unsupported(f"{binary} is no Firecracker: it does not say its version")
    if version.numbers < OLDEST.numbers:
        raise Unsupported(f"Firecracker {version} is too old: {OLDEST} or newer is needed; see `hatchvm doctor`")
    if version.major >= _ANOTHER_API:
        raise Unsupported(f"Firecracker {version} is newer than what Hatch knows: use a 1.x from {OLDEST} on")
    snapshot_version = parse(say(path, "--snapshot-version"))
    if snapshot_version is None:
        raise Unsupported(f"{binary} does not say which snapshots it reads")
    return Installed(path, version, snapshot_version)


def say(path: Path, question: str) -> str:
    """What the program answers on stdout. Raises Unsupported if it does not run."""
    try:
        return subprocess.run(
            [path, question], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
        ).stdout
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise Unsupported(f"{path} does not run", detail=repr(error)) from error
