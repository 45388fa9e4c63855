"""`hatchvm health`, `hatchvm status` and `hatchvm events`: how the daemon does, now and as it goes."""

from __future__ import annotations

from typing import Final

from hatchvm.base.errors import EXIT_CODE, Kind
from hatchvm.base.units import format_duration
from hatchvm.cli import render
from hatchvm.cli.session import InSession
from hatchvm.client.answers import Status

_COLUMNS: Final = ("at", "vm_id", "state", "type", "reason")
_UPLOAD_COLUMNS: Final = ("vm_id", "snapshot_id", "pending_since", "uploading", "next_retry_at", "error")


def health(*, session: InSession) -> None:
    """Ask the daemon how it is."""
    with session.client() as client:
        session.show(client.health())


def status(*, session: InSession) -> int:
    """Show VMs by state, and snapshots that are not stored yet. The exit code is 0 if the daemon is ready, else 8."""
    with session.client() as client:
        found = client.status()
    if session.json:
        session.show(found)
    else:
        session.show(
            {
                "status": found["status"],
                "reason": found["reason"],
                "store": found["store"],
                "vms": ", ".join(f"{count} {state}" for state, count in sorted(found["vms"].items())) or "none",
                "not stored yet": _waiting(found),
            }
        )
        if found["uploads"]:
            session.show_all(found["uploads"], _UPLOAD_COLUMNS)
    return EXIT_CODE[Kind.UNAVAILABLE] if found["reason"] else 0


def _waiting(found: Status) -> str:
    count = found["uploads_pending"]
    if not count:
        return "no snapshot"
    oldest = format_duration(round(found["oldest_pending_seconds"]))
    return f"{count} snapshot{'s' if count > 1 else ''}, the oldest for {oldest}"


def events(*, vm: str | None = None, session: InSession) -> None:
    """Print state changes as they happen, until interrupted.

    Parameters
    ----------
    vm
        Only those of this VM.
    """
    with session.client() as client, client.events(vm) as changes:
        for event in changes:
            render.line(event, _COLUMNS, as_json=session.json)
