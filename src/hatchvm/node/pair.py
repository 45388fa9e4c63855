"""The saved pair: memory, device state and disk of one suspended VM, and the marker that makes them one.

    saved.json  ──begin_wake──▶  waking.json  ──spend──▶  (no marker: the guest ran on, the state no longer fits)
        ▲                            │
        └────────put_back────────────┘

Once a guest has run on its memory file, the device state beside it is wrong, and nothing in the files shows it. So
the marker is removed *before* the guest runs. A removal that is not yet on disk would come back after a power failure;
waiting for the disk would slow every wake. Therefore `begin_wake` durably replaces the marker while the VMM is still
starting, and a `waking.json` from an earlier boot of the host is not believed.

A marker also tells whether the files themselves are on disk (`synced`): what was only in the page cache when the host
lost power is not believed either.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from blake3 import blake3

from hatchvm.base import tasks
from hatchvm.base.errors import Corrupt
from hatchvm.base.files import sync_dir, sync_file, write_atomic
from hatchvm.base.paths import VMPaths
from hatchvm.domain.snapshot import Stamp
from hatchvm.pager import ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What the marker holds."""

    boot_id: str
    synced: bool
    stamp: Stamp
    state_digest: str
    memory_bytes: int
    accepted: frozenset[int]  # guest ports that had accepted a connection
    source: str | None = None  # the stored snapshot these files were fetched from; None: a suspend here made them


def commit(
    paths: VMPaths,
    *,
    stamp: Stamp,
    accepted: frozenset[int],
    boot_id: str,
    synced: bool,
    source: str | None = None,
) -> Saved:
    """Make what is in the folder a suspended VM. From here on a crash of the daemon loses nothing."""
    saved = Saved(
        boot_id=boot_id,
        synced=synced,
        stamp=stamp,
        state_digest=_digest(paths.state),
        memory_bytes=paths.memory.stat().st_size,
        accepted=accepted,
        source=source,
    )
    _write(paths.saved, saved, durable=synced)
    return saved


def load(paths: VMPaths, boot_id: str) -> Saved | None:
    """The pair, if there is one that can be believed on this boot of the host. Looks at the small parts only.

    Raises Corrupt if the marker is there and the files are not what it says.
    """
    waking = _read(paths.waking)
    if waking is not None and waking.boot_id != boot_id:
        waking = None  # beside a `saved.json` it means: power was lost before the wake was announced for good
    saved = waking or _read(paths.saved)
    if ledger.source(paths) is not None:
        raise Corrupt("the VM's disk is not whole on this host")
    if saved is None or (saved.boot_id != boot_id and not saved.synced):
        return None
    try:
        sound = paths.memory.stat().st_size == saved.memory_bytes and _digest(paths.state) == saved.state_digest
    except FileNotFoundError as error:
        raise Corrupt("a part of the saved VM is missing", detail=str(error.filename)) from error
    if not sound:
        raise Corrupt("the saved device state or memory is not what was saved", detail=str(paths.root))
    return saved


def sound(paths: VMPaths, boot_id: str) -> bool:
    """Whether there is a pair that `load` would return."""
    try:
        return load(paths, boot_id) is not None
    except Corrupt:
        return False


def begin_wake(paths: VMPaths, saved: Saved, boot_id: str) -> None:
    """Durably announce the wake. `boot_id` becomes this boot's: after another one the pair is not believed."""
    if saved.synced:
        _write(paths.waking, replace(saved, boot_id=boot_id), durable=False)
        paths.saved.unlink(missing_ok=True)
        sync_dir(paths.root)
    else:
        _write(paths.waking, saved, durable=False)
        paths.saved.unlink(missing_ok=True)


def spend(paths: VMPaths) -> None:
    """The guest runs on (or boots anew) from here: forget that it was saved."""
    paths.saved.unlink(missing_ok=True)
    paths.waking.unlink(missing_ok=True)


def put_back(paths: VMPaths, saved: Saved) -> None:
    """The wake failed before the guest ran: it is saved as before. Renaming works on a full disk, too."""
    try:
        paths.waking.replace(paths.saved)
    except FileNotFoundError:
        if not paths.saved.exists():
            _write(paths.saved, saved, durable=False)
    if saved.synced:
        sync_dir(paths.root)


async def sync(paths: VMPaths, saved: Saved) -> Saved:
    """Bring the files to disk, then say so in the marker. Takes as long as the disk needs; the guest does not wait.

    A wake may cut it short, but not while the marker is written: it would come back after the wake had spent it.
    """
    for path in (paths.memory, paths.state, paths.disk):
        if path.exists():
            await asyncio.to_thread(sync_file, path)
    synced = replace(saved, synced=True)
    await tasks.finish(asyncio.to_thread(_write, paths.saved, synced, durable=True), name="mark as synced")
    return synced


def _digest(path: Path) -> str:
    return blake3(path.read_bytes()).hexdigest()


def _write(path: Path, saved: Saved, *, durable: bool) -> None:
    record = {**asdict(saved), "accepted": sorted(saved.accepted)}
    write_atomic(path, json.dumps(record).encode(), durable=durable)


def _read(path: Path) -> Saved | None:
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        stamp = Stamp.of(record.pop("stamp"))
        return Saved(stamp=stamp, accepted=frozenset(record.pop("accepted")), **record)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt("the marker of the saved VM is damaged", detail=str(path)) from error
