"""`hatchvm key`."""

from __future__ import annotations

from typing import Final

from cyclopts import App

from hatchvm.cli.session import InSession

app = App(name="key", help="Make and revoke API keys.")

_COLUMNS: Final = ("id", "name", "created_at")


@app.command
def create(name: str, /, *, session: InSession) -> None:
    """Make a key. It is shown now and never again."""
    with session.client() as client:
        session.show(client.create_key(name))


@app.command(name="list")
def list_keys(*, session: InSession) -> None:
    """List keys, without their secrets."""
    with session.client() as client:
        session.show_all(client.list_keys(), _COLUMNS)


@app.command
def delete(key: str, /, *, session: InSession) -> None:
    """Revoke a key, by id."""
    with session.client() as client:
        client.delete_key(key)
    session.show_deleted(key)
