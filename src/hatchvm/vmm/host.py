"""What a snapshot depends on of the host that it was made on."""

from __future__ import annotations

import asyncio
import hashlib
import re
from pathlib import Path

from blake3 import blake3

from hatchvm.base.errors import Unsupported


def cpu_of(cpuinfo: str) -> tuple[str, str]:
    """(model name, digest of the flags in any order) of the first CPU in a /proc/cpuinfo."""
    model = re.search(r"^model name[ \t]*:[ \t]*(.*)", cpuinfo, re.MULTILINE)
    flags = re.search(r"^flags[ \t]*:[ \t]*(.*)", cpuinfo, re.MULTILINE)
    names = sorted(flags.group(1).split()) if flags else []
    return (model.group(1).strip() if model else "unknown", hashlib.sha256(" ".join(names).encode()).hexdigest()[:16])


class Kernels:
    """Digests of kernels. An image's files never change, so each is read once: 50 MB take 25 ms, and the VMM reads the
    same file right after."""

    def __init__(self) -> None:
        self._digests: dict[Path, str] = {}

    async def digest(self, kernel: Path) -> str:
        """BLAKE3 of the file, as hex. Raises Unsupported."""
        if kernel not in self._digests:
            try:
                digest = await asyncio.to_thread(blake3().update_mmap, kernel)
            except OSError as error:
                raise Unsupported("the image's kernel cannot be read", detail=repr(error)) from error
            self._digests[kernel] = digest.hexdigest()
        return self._digests[kernel]
