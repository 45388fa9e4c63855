"""What this host can do for QEMU: found by trying (see `vmm.trial`)."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from hatchvm.base.errors import Unsupported
from hatchvm.domain.image import Boot
from hatchvm.vmm.host import cpu_of
from hatchvm.vmm.qemu.cmdline import MACHINE, Accel, Machine
from hatchvm.vmm.trial import BOOT_ARGS, Trial

_FALLBACK_KHZ: Final = 2_000_000


class Accelerator:
    """Decides between KVM and software emulation. `mode`: what the user asked for."""

    def __init__(self, mode: Literal["auto", "kvm", "tcg"], *, memory: Path, binary: str | None = None) -> None:
        self._mode = mode
        self._memory = memory
        self._binary = binary or "qemu-system-x86_64"
        self._machine: Machine | None = None
        self._deciding = asyncio.Lock()

    async def machine(self, boot: Boot | None) -> Machine:
        """The machine every VM gets here. `boot`: a kernel to try KVM with; without one an untried KVM is not decided.

        Raises Unsupported if QEMU is missing, or KVM was demanded and does not work.
        """
        async with self._deciding:
            if self._machine is None:
                path = shutil.which(self._binary)
                if path is None:
                    raise Unsupported(f"{self._binary} is not installed: apt-get install qemu-system-x86")
                version = await asyncio.to_thread(_version, path)
                accel, sure = await self._decide(path, version, boot)
                cpuinfo = await asyncio.to_thread(Path("/proc/cpuinfo").read_text)
                machine = Machine(
                    binary=path, version=version, accel=accel, tsc_khz=_tsc_khz(cpuinfo), host_cpu=cpu_of(cpuinfo)
                )
                if not sure:
                    return machine
                self._machine = machine
            return self._machine

    async def _decide(self, binary: str, version: str, boot: Boot | None) -> tuple[Accel, bool]:
        if self._mode == "tcg" or (self._mode == "auto" and not Path("/dev/kvm").exists()):
            return "tcg", True
        trial = Trial(self._memory, ("qemu", version))
        works = trial.remembered()
        if works is None:
            if boot is None:
                return "tcg", False
            works = await asyncio.to_thread(trial.hold, _command(binary, boot))
        if not works and self._mode == "kvm":
            raise Unsupported("HATCH_ACCEL=kvm, but no kernel starts under KVM here; HATCH_ACCEL=tcg works anywhere")
        return ("kvm" if works else "tcg"), True


def _command(binary: str, boot: Boot) -> Sequence[str]:
    machine = ("-M", MACHINE, "-accel", "kvm", "-cpu", "host", "-m", "128M", "-nodefaults", "-no-user-config")
    end = ("-no-reboot", "-display", "none", "-serial", "file:console")
    return [binary, *machine, *end, "-kernel", str(boot.kernel.absolute()), "-append", BOOT_ARGS]


def _version(binary: str) -> str:
    try:
        text = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise Unsupported(f"{binary} does not run", detail=repr(error)) from error
    match = re.search(r"version (.+)", text)
    return match.group(1).strip() if match else "unknown"


def _tsc_khz(cpuinfo: str) -> int:
    match = re.search(r"cpu MHz\s*:\s*([\d.]+)", cpuinfo)
    return round(float(match.group(1)) * 1000) if match else _FALLBACK_KHZ
