"""A user of its own for every VM, by number only: no database of users knows it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

from hatchvm.base.errors import Exhausted
from hatchvm.base.files import write_atomic
from hatchvm.base.paths import VMPaths

#: Nobody's, by systemd's table of users (containers and subordinate users end below, the foreign ones begin above) and
#: by the defaults of shadow. Two Hatches on one host need ranges apart.
RANGE: Final = range(1_900_000_000, 1_900_100_000)
_claiming: Final = threading.Lock()


def claim(paths: VMPaths, uids: range = RANGE) -> int:
    """The VM's user, recorded in its folder, and like no other's of the VMs beside it.

    May be repeated, by several threads of one daemon. Blocks, the first time for as long as it takes to read a file of
    each VM. Raises Exhausted if all are taken, OSError.
    """
    with _claiming:
        if (mine := _recorded(paths.uid)) is not None:
            return mine
        taken = {_recorded(record) for record in paths.root.parent.glob(f"*/{paths.uid.name}")}
        free = next((uid for uid in uids if uid not in taken), None)
        if free is None:
            raise Exhausted(f"all {len(uids)} users for VMs are taken; delete VMs, or widen their range")
        write_atomic(paths.uid, str(free).encode(), durable=False)
        return free


def _recorded(record: Path) -> int | None:
    """None if there is none, or a lost one: a host that lost power has no processes, and files get their owner anew."""
    try:
        return int(record.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
