"""What this host can do for QEMU: found by trying, remembered in a file.

`/dev/kvm` can exist, open, even create a VM, and still not run a stock kernel (nested paravirtual schemes), so `auto`
boots a real kernel under KVM and waits for its first words. The verdict is kept until the host, its kernel or QEMU
changes.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final, Literal

from hatchvm.base.errors import Unsupported
from hatchvm.base.files import write_atomic
from hatchvm.base.process import boot_id
from hatchvm.domain.image import Boot
from hatchvm.vmm.host import cpu_of
from hatchvm.vmm.qemu.cmdline import MACHINE, Accel, Machine

#: A stock kernel prints its version within a fraction of a second under KVM.
_FIRST_WORDS_S: Final = 10.0
_LOOK_S: Final = 0.05
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
        host = {"qemu": version, "kernel": platform.release(), "boot": boot_id()}
        works = self._remembered(host)
        if works is None:
            if boot is None:
                return "tcg", False
            works = await asyncio.to_thread(_try_kvm, binary, boot)
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._memory, json.dumps({**host, "kvm_works": works}).encode(), mode=0o644)
        if not works and self._mode == "kvm":
            raise Unsupported("HATCH_ACCEL=kvm, but no kernel starts under KVM here; HATCH_ACCEL=tcg works anywhere")
        return ("kvm" if works else "tcg"), True

    def _remembered(self, host: dict[str, str]) -> bool | None:
        try:
            record = json.loads(self._memory.read_bytes())
            works = bool(record.pop("kvm_works"))
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return works if record == host else None


def _try_kvm(binary: str, boot: Boot) -> bool:
    """Boot the kernel under KVM until it says its version; False if it does not in time, or QEMU ends."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    with tempfile.TemporaryDirectory(prefix="hatchvm-kvm-") as folder:
        console = Path(folder, "console")
        argv = [
            binary,
            "-M",
            MACHINE,
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-m",
            "128M",
            "-nodefaults",
            "-no-user-config",
        ]
        argv += ["-no-reboot", "-display", "none", "-serial", f"file:{console}", "-kernel", str(boot.kernel)]
        argv += ["-append", "console=ttyS0 panic=-1"]
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
        )
        try:
            for _ in range(int(_FIRST_WORDS_S / _LOOK_S)):
                if console.exists() and b"Linux version" in console.read_bytes():
                    return True
                if child.poll() is not None:
                    return False
                time.sleep(_LOOK_S)
            return False
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()


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
