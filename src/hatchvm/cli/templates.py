"""`hatchvm template`."""

from __future__ import annotations

from typing import Final

from cyclopts import App

from hatchvm.cli.options import Defaults
from hatchvm.cli.session import InSession

app = App(name="template", help="Keep sets of defaults for new VMs.")

_COLUMNS: Final = ("id", "name", "defaults", "created_at")


@app.command
def create(name: str, /, *, defaults: Defaults = Defaults(), session: InSession) -> None:  # noqa: B008
    """Keep a set of defaults under a name."""
    with session.client() as client:
        session.show(client.create_template(name, defaults.fields()))


@app.command(name="list")
def list_templates(*, session: InSession) -> None:
    """List templates, newest first."""
    with session.client() as client:
        session.show_all(client.list_templates(), _COLUMNS)


@app.command
def get(template: str, /, *, session: InSession) -> None:
    """Show one template, by id or name."""
    with session.client() as client:
        session.show(client.get_template(template))


@app.command
def delete(template: str, /, *, session: InSession) -> None:
    """Delete a template, by id or name."""
    with session.client() as client:
        client.delete_template(template)
    session.show_deleted(template)
