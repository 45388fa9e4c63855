"""`hatchvm health` and `hatchvm events`: how the daemon does, now and as it goes."""

from __future__ import annotations

from typing import Final

from hatchvm.cli import render
from hatchvm.cli.session import InSession

_COLUMNS: Final = ("at", "vm_id", "state", "type", "reason")


def health(*, session: InSession) -> None:
    """Ask the daemon how it is."""
    with session.client() as client:
        session.show(client.health())


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
