"""Whether a kernel runs under KVM here: found by booting one, remembered in a file.

`/dev/kvm` can exist, open, even create a VM, and still not run a stock kernel (nested paravirtual schemes), so a real
one is started and its first words are waited for. The verdict is kept until the host is booted anew, its kernel or the
VMM changes.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from hatchvm.base.files import write_atomic
from hatchvm.base.process import boot_id

#: What a kernel of the trial is told; it says its version first.
BOOT_ARGS: Final = "console=ttyS0 panic=-1"
#: A stock kernel prints its version within a fraction of a second under KVM.
_FIRST_WORDS_S: Final = 10.0
_LOOK_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Trial:
    """One VMM's. `memory`: where the verdict is kept; `vmm`: its name and its version."""

    memory: Path
    vmm: tuple[str, str]

    def remembered(self) -> bool | None:
        """The verdict on this very host, if there is one."""
        try:
            record = json.loads(self.memory.read_bytes())
            works = bool(record.pop("kvm_works"))
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return works if record == self._host() else None

    def hold(self, argv: Sequence[str], files: Mapping[str, str] = MappingProxyType({})) -> bool:
        """Try now, and remember. Blocks for up to ten seconds.

        `argv`: a VMM whose guest's console is its stdout or the file `console`. It runs in a folder with these `files`.
        """
        works = os.access("/dev/kvm", os.R_OK | os.W_OK) and _speaks(argv, files)
        self.memory.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.memory, json.dumps({**self._host(), "kvm_works": works}).encode(), mode=0o644)
        return works

    def _host(self) -> dict[str, str]:
        name, version = self.vmm
        return {name: version, "kernel": platform.release(), "boot": boot_id()}


def _speaks(argv: Sequence[str], files: Mapping[str, str]) -> bool:
    """False if the kernel does not say its version in time, or the VMM ends."""
    with tempfile.TemporaryDirectory(prefix="hatchvm-kvm-") as folder:
        for name, text in files.items():
            Path(folder, name).write_text(text)
        console = Path(folder, "console")
        with console.open("ab") as output:
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.DEVNULL, cwd=folder
            )
        try:
            for _ in range(int(_FIRST_WORDS_S / _LOOK_S)):
                ended = child.poll() is not None  # asked first: it may speak and end right after
                if b"Linux version" in console.read_bytes():
                    return True
                if ended:
                    return False
                time.sleep(_LOOK_S)
            return False
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
