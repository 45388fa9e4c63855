"""Bringing a database's schema up to date with Alembic, in one transaction: a cut-off upgrade leaves the old schema."""

from __future__ import annotations

from typing import Final

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from hatchvm.base.errors import Unsupported

_SCRIPTS: Final = "hatchvm.store:migrations"


def upgrade(connection: Connection) -> None:
    """Create or upgrade the schema. Raises Unsupported if a newer version of Hatch wrote it."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", _SCRIPTS)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    with connection.begin():
        unknown = set(MigrationContext.configure(connection).get_current_heads()) - known
        if unknown:
            raise Unsupported(
                "the database was written by a newer version of Hatch; start that version, or use another database",
                detail=f"unknown schema revision {', '.join(sorted(unknown))}",
            )
        command.upgrade(config, "head")
