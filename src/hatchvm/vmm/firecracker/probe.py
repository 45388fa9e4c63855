"""Whether a Firecracker runs guests here: by starting a kernel in one, bare, with nothing but a console."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Final

from hatchvm.base.errors import Unsupported
from hatchvm.vmm.firecracker.bootargs import RESET
from hatchvm.vmm.firecracker.version import Installed
from hatchvm.vmm.trial import BOOT_ARGS, Trial

_KVM: Final = Path("/dev/kvm")
_MEM_MIB: Final = 128
_CONFIG: Final = "config.json"


def check() -> None:
    """Raises Unsupported if nothing need be tried."""
    if not _KVM.exists():
        raise Unsupported(
            "Firecracker needs KVM, and there is no /dev/kvm; use a host, or a VM with nested virtualisation, with one"
        )
    if not os.access(_KVM, os.R_OK | os.W_OK):
        raise Unsupported("Firecracker needs KVM, and /dev/kvm is not yours; usermod -aG kvm $USER, then log in again")


async def works(installed: Installed, kernel: Path, memory: Path) -> bool:
    """True if `kernel`, an ELF, starts. The verdict is kept in the file `memory`."""
    trial = Trial(memory, ("firecracker", f"{installed.version} {installed.path} {kernel}"))
    known = trial.remembered()
    if known is not None:
        return known
    argv = [str(installed.path), "--no-api", "--config-file", _CONFIG, "--level", "Error"]
    return await asyncio.to_thread(trial.hold, argv, {_CONFIG: _config(kernel)})


def _config(kernel: Path) -> str:
    source = {"kernel_image_path": str(kernel.absolute()), "boot_args": f"{BOOT_ARGS} {RESET}"}
    machine = {"vcpu_count": 1, "mem_size_mib": _MEM_MIB}
    return json.dumps({"boot-source": source, "machine-config": machine, "drives": []})
