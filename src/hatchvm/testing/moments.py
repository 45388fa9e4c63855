"""How far a suspend or a wake of a guest has come, told from the log since a position and from the VM's folder.

Tests act at these moments instead of after some time. Most pass quickly: also look whether the call is over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from hatchvm.testing.guest import Guest, events

#: Takes a guest and a position in its daemon's log (`ChildDaemon.mark`).
Moment = Callable[[Guest, int], bool]


def _state(name: str) -> Moment:
    return lambda guest, mark: bool(events(guest.daemon, "vm state", mark, vm=guest.id, after=name))


def _uploading(guest: Guest, mark: int) -> bool:
    created = events(guest.daemon, "snapshot created", mark, vm=guest.id)
    return bool(created) and any(guest.daemon.paths.objects.glob(f"snapshots/{guest.id}/{created[-1]['snapshot']}/*"))


SUSPENDING: Final[Mapping[str, Moment]] = MappingProxyType(
    {
        "asked for": lambda guest, mark: True,
        "announced": _state("suspending"),
        "saving": lambda guest, mark: guest.paths.state.with_suffix(".new").exists(),
        "saved": lambda guest, mark: guest.paths.saved.exists(),
        "let go": lambda guest, mark: not guest.paths.process.exists(),
        "asleep": _state("snapshotted"),
        "uploading": _uploading,
        "stored": lambda guest, mark: bool(events(guest.daemon, "snapshot stored", mark, vm=guest.id)),
    }
)
WAKING: Final[Mapping[str, Moment]] = MappingProxyType(
    {
        "announced": _state("restoring"),
        "started": lambda guest, mark: guest.paths.process.exists(),
        "spent": lambda guest, mark: not guest.paths.saved.exists() and not guest.paths.waking.exists(),
    }
)
