"""Whether a Firecracker runs guests here: by starting a kernel in one, bare, with nothing but a console."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Final

from hatchvm.vmm.firecracker.bootargs import RESET
from hatchvm.vmm.firecracker.version import Installed
from hatchvm.vmm.trial import BOOT_ARGS, Trial

_MEM_MIB: Final = 128
_CONFIG: Final = "config.json"


async def works(installed: Installed, kernel: Path | None, memory: Path) -> bool | None:
    """True if `kernel` starts, None if there is none to try and nothing is known from before.

    The verdict is kept in the file `memory`. Nothing is tried, and nothing remembered, without `/dev/kvm`.
    """
    if not Path("/dev/kvm").exists():
        return False
    trial = Trial(memory, ("firecracker", f"{installed.version} {installed.path}"))
    known = trial.remembered()
    if known is not None or kernel is None:
        return known
    argv = [str(installed.path), "--no-api", "--config-file", _CONFIG, "--level", "Error"]
    return await asyncio.to_thread(trial.hold, argv, {_CONFIG: _config(kernel)})


def _config(kernel: Path) -> str:
    source = {"kernel_image_path": str(kernel.absolute()), "boot_args": f"{BOOT_ARGS} {RESET}"}
    machine = {"vcpu_count": 1, "mem_size_mib": _MEM_MIB}
    return json.dumps({"boot-source": source, "machine-config": machine, "drives": []})
