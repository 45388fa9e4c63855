"""`hatchvm snapshot`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated, Final

from cyclopts import App, Parameter

from hatchvm.base.errors import EXIT_CODE, Invalid, Kind
from hatchvm.base.units import format_bytes
from hatchvm.cli import render
from hatchvm.cli.session import InSession
from hatchvm.client import ApiError, Client
from hatchvm.client.answers import Verified

app = App(name="snapshot", help="Look at snapshots and verify them; `hatchvm vm snapshot` makes one.")

_COLUMNS: Final = ("id", "vm_id", "status", "size_bytes", "stored_bytes", "parent_id", "created_at")
_VERIFIED: Final = ("snapshot_id", "status", "bytes", "error")


@app.command(name="list")
def list_snapshots(vm: str, /, *, session: InSession) -> None:
    """List the snapshots of a VM, newest first."""
    with session.client() as client:
        session.show_all(client.list_snapshots(client.find_vm(vm)), _COLUMNS)


@app.command
def get(snapshot: str, /, *, session: InSession) -> None:
    """Show one snapshot."""
    with session.client() as client:
        session.show(client.get_snapshot(snapshot))


@app.command
def delete(snapshot: str, /, *, session: InSession) -> None:
    """Delete a snapshot. What only it needs goes later: see `hatchvm store gc`."""
    with session.client() as client:
        client.delete_snapshot(snapshot)
    session.show_deleted(snapshot)


@app.command
def verify(
    snapshot: str | None = None,
    /,
    *,
    everything: Annotated[bool, Parameter(name="--all", negative="")] = False,
    session: InSession,
) -> int:
    """Read all that is stored of a snapshot, to prove that it can be restored. The exit code is 10 if it cannot.

    Parameters
    ----------
    everything
        Of every stored snapshot of every VM.
    """
    if everything == (snapshot is not None):
        raise Invalid("name one snapshot, or say --all")
    with session.client() as client:
        wanted = _stored(client) if snapshot is None else [snapshot]
        found = list(_verified(client, wanted))
    rows = [{"snapshot_id": one, "bytes": None, "error": None, **answer} for one, answer in found]
    if everything:
        session.show_all(rows, _VERIFIED)
    else:
        session.show(rows[0])
    damaged = any(answer["status"] != "ok" for _, answer in found)
    return EXIT_CODE[Kind.CORRUPT] if damaged else 0


def _stored(client: Client) -> list[str]:
    snapshots = [one for vm in client.list_vms() for one in client.list_snapshots(vm["id"])]
    return [one["id"] for one in snapshots if one["status"] == "committed"]


def _verified(client: Client, wanted: list[str]) -> Iterator[tuple[str, Verified]]:
    """One after the other, with a line for each of many. One of many that is deleted meanwhile is left out."""
    for number, snapshot_id in enumerate(wanted, 1):
        try:
            with render.waiting(f"reading {snapshot_id}"):
                answer = client.verify_snapshot(snapshot_id)
        except ApiError as error:
            if len(wanted) == 1 or error.kind is not Kind.NOT_FOUND:
                raise
            continue
        yield snapshot_id, answer
        if len(wanted) > 1:
            said = format_bytes(answer["bytes"]) if "bytes" in answer else "damaged"
            print(f"{number}/{len(wanted)}  {snapshot_id}  {said}", file=sys.stderr, flush=True)
