"""A guest writes its console as fast as it likes; what the host keeps of it is bounded."""

from __future__ import annotations

import os
from typing import Final

from hatchvm.base.paths import VMPaths

#: A log beyond this starts anew. The VMM appends, so emptying the file under it is safe.
MAX_BYTES: Final = 4 * 1024 * 1024


def trim(paths: VMPaths) -> None:
    """Empty what a guest and its VMM write where they grew too large."""
    for log in (paths.console, paths.vmm_log, paths.metrics):
        try:
            if log.stat().st_size > MAX_BYTES:
                os.truncate(log, 0)
        except FileNotFoundError:
            continue
