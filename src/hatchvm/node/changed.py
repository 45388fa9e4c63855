"""Which pages of a VM's memory file may differ from a snapshot that is in the object store: `paths.changed`.

    fetch, upload of S           the record says: S, nothing changed
    a capture                    it is taken away before, and written again with what the guest wrote added to it
    no capture that tells it,    there is none: the next upload reads everything
    or none that ended

The record is never behind the memory: a crash at any moment leaves the right one or none. It is not brought to disk,
where it would outlive what it speaks of, so it is believed on the same boot of the host only.
"""

from __future__ import annotations

import contextlib
import json

import numpy as np

from hatchvm.base.errors import Invalid
from hatchvm.base.files import write_atomic
from hatchvm.base.paths import VMPaths
from hatchvm.ports.vmm import Pages
from hatchvm.snapshots.layout import SnapshotKeys
from hatchvm.snapshots.since import Since

NOTHING: Pages = np.zeros(0, np.uint32)


def read(paths: VMPaths, boot_id: str) -> Since | None:
    """What is known; None if nothing is, or it cannot be believed."""
    try:
        head, _, pages = paths.changed.read_bytes().partition(b"\n")
        record = json.loads(head)
        keys = SnapshotKeys(record["vm_id"], record["snapshot_id"])
        if (record["boot_id"], 4 * record["pages"]) != (boot_id, len(pages)):
            return None
    except (FileNotFoundError, ValueError, KeyError, TypeError, Invalid):
        return None
    return Since(keys, np.frombuffer(pages, "<u4").astype(np.uint32))


def take(paths: VMPaths, boot_id: str) -> Since | None:
    """As `read`, and the record is gone."""
    since = read(paths, boot_id)
    forget(paths)
    return since


def write(paths: VMPaths, boot_id: str, keys: SnapshotKeys, pages: Pages = NOTHING) -> None:
    """Only these pages may differ from that snapshot's. On a full disk it is not written down: an older record, which
    is still right, or none stays."""
    record = {"boot_id": boot_id, "vm_id": keys.vm_id, "snapshot_id": keys.snapshot_id, "pages": len(pages)}
    with contextlib.suppress(OSError):
        write_atomic(paths.changed, json.dumps(record).encode() + b"\n" + pages.astype("<u4").tobytes(), durable=False)


def forget(paths: VMPaths) -> None:
    """The memory is, or will be, something else."""
    paths.changed.unlink(missing_ok=True)
