"""OpenSSH as a user runs it, to the SSH port of a guest."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from hatchvm.testing.guest import DEADLINE_S, Guest

#: Nothing of this machine's user takes part: no configuration, agent, other key or list of known hosts.
ALONE: Final = (
    *("-F", "none", "-o", "IdentityAgent=none", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes"),
    *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"),
)


def command(guest: Guest, key: Path, *words: str) -> list[str]:
    """The command line that runs `words` in the guest."""
    port = guest.look()["ssh_port"]
    return ["ssh", *ALONE, "-i", str(key), "-p", str(port), "root@127.0.0.1", *words]


def ssh(guest: Guest, key: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `words` in the guest."""
    return subprocess.run(command(guest, key, *words), capture_output=True, text=True, timeout=DEADLINE_S, check=False)
