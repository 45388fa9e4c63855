"""What an operator chooses about Firecracker."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hatchvm.base.errors import Unsupported
from hatchvm.vmm.firecracker import uids
from hatchvm.vmm.firecracker.requests import Devices

_JAILER: Final = "jailer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Programs are paths, or names on PATH. `older`: Firecrackers kept for the snapshots that they wrote.

    `jailer`: None for the one beside the Firecracker, else on PATH. `jail`: VMs are confined, by users in `uids`.
    """

    binary: str = "firecracker"
    older: tuple[str, ...] = ()
    jailer: str | None = None
    jail: bool = True
    uids: range = uids.RANGE
    devices: Devices = field(default_factory=Devices)

    def jailer_of(self, firecracker: Path) -> Path:
        """The jailer that goes with this Firecracker. Raises Unsupported."""
        beside = firecracker.with_name(_JAILER)
        wanted = self.jailer or (str(beside) if beside.exists() else _JAILER)
        found = shutil.which(wanted)
        if found is None:
            raise Unsupported(f"{wanted} is not installed; it comes with Firecracker's release: see `hatchvm doctor`")
        return Path(found).resolve()
