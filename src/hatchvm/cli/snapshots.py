"""`hatchvm snapshot`."""

from __future__ import annotations

from typing import Final

from cyclopts import App

from hatchvm.cli.session import InSession

app = App(name="snapshot", help="Look at snapshots; `hatchvm vm snapshot` makes one.")

_COLUMNS: Final = ("id", "vm_id", "status", "size_bytes", "stored_bytes", "parent_id", "created_at")


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
    """Delete a snapshot and its unshared data."""
    with session.client() as client:
        client.delete_snapshot(snapshot)
    session.show_deleted(snapshot)
