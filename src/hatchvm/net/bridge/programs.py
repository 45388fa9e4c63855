"""Running the host's programs that set up networks, in the namespace of the calling thread."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Final

from hatchvm.base.errors import Unavailable, Unsupported

#: Program -> Debian's package of it.
PACKAGES: Final = {"nft": "nftables", "dnsmasq": "dnsmasq-base", "ip": "iproute2"}


def find(program: str) -> str:
    """Its path, even if sbin is not on PATH. Raises Unsupported with the package to install."""
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        raise Unsupported(f"{program} is not installed: apt-get install {PACKAGES[program]}")
    return path


def run(program: str, *args: str, text: str = "") -> None:
    """Blocks until it ends. Raises Unsupported if it is not installed, Unavailable if it fails."""
    done = subprocess.run(
        [find(program), *args],
        input=text,
        env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise Unavailable(f"the guests' network could not be set up: {program} failed", detail=done.stderr[-2000:])
