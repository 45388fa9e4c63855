"""Migrations make the schema that `tables.py` describes, and refuse one they do not know."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import OperationalError

from hatchvm.base.errors import Unsupported
from hatchvm.domain.lifecycle import State
from hatchvm.store.engine import connect
from hatchvm.store.schema import upgrade
from hatchvm.store.store import SqlStore
from hatchvm.store.tables import leases, metadata, routes, ssh_keys, vms

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
A_VM: Final[dict[str, object]] = {
    "image_id": "img-1",
    "vcpu_count": 1,
    "mem_mib": 64,
    "enable_network": True,
    "metadata": {},
    "state": State.STOPPED,
    "state_reason": "",
    "node_id": "node-1",
    "created_at": NOW,
    "updated_at": NOW,
    "guest_ip": "10.0.2.15",
    "guest_mac": "06:00:0a:00:02:0f",
    "wake_failures": 0,
    "generation": 0,
}


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "hatch.db"


@pytest.fixture
def connection(database: Path) -> Iterator[Connection]:
    connection = connect(str(database), busy_timeout_s=1)
    yield connection
    connection.close()


def shape(connection: Connection) -> list[tuple[str, ...]]:
    """Every column, foreign key and index as SQLite has it."""
    found: list[tuple[str, ...]] = []
    for table in metadata.tables:
        for pragma in ("table_info", "foreign_key_list", "index_list"):
            rows = connection.exec_driver_sql(f"PRAGMA {pragma}({table})").all()
            found += [(table, pragma, *map(str, row[1:])) for row in rows]
    connection.rollback()
    return sorted(found)


def test_a_fresh_database_is_what_the_tables_describe(connection: Connection) -> None:
    upgrade(connection)
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    assert compare_metadata(context, metadata) == []


def test_a_migrated_schema_equals_a_created_one(connection: Connection, tmp_path: Path) -> None:
    upgrade(connection)
    created = connect(str(tmp_path / "created.db"), busy_timeout_s=1)
    metadata.create_all(created)
    created.commit()
    assert shape(connection) == shape(created)
    created.close()


def test_upgrading_again_changes_nothing(connection: Connection) -> None:
    upgrade(connection)
    before = shape(connection)
    upgrade(connection)
    assert shape(connection) == before


def upgrade_to(connection: Connection, revision: str) -> None:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "hatchvm.store:migrations")
    command.upgrade(config, revision)


def test_an_upgrade_keeps_the_rows_of_the_first_schema(connection: Connection) -> None:
    """Guests of private user networks may all have one address: the second schema must not mind."""
    with connection.begin():
        upgrade_to(connection, "0001")
        connection.execute(insert(vms), [A_VM | {"id": "vm-1"}, A_VM | {"id": "vm-2"}])
    upgrade(connection)
    assert sorted(connection.scalars(select(vms.c.id))) == ["vm-1", "vm-2"]
    assert connection.scalars(select(leases.c.id)).all() == connection.scalars(select(ssh_keys.c.id)).all() == []
    connection.rollback()


def test_an_upgrade_keeps_the_routes_of_the_second_schema(connection: Connection) -> None:
    with connection.begin():
        upgrade_to(connection, "0002")
        connection.execute(insert(vms), A_VM | {"id": "vm-1"})
        connection.exec_driver_sql(
            "INSERT INTO routes VALUES ('rt-1', 'vm-1', 'app', 80, 1, '2026-01-01 00:00:00', '2026-01-01 00:00:00')"
        )
    upgrade(connection)
    row = connection.execute(select(routes)).one()
    assert (row.id, row.subdomain, row.target_port, row.auto_wake) == ("rt-1", "app", 80, True)
    assert (row.domain, row.domain_token, row.domain_verified_at) == (None, None, None)
    assert (row.domain_checked_at, row.domain_missing_since, row.domain_misses) == (None, None, 0)
    connection.rollback()


async def test_a_schema_of_a_newer_version_is_refused_and_left_alone(database: Path) -> None:
    store = SqlStore(f"sqlite:///{database}")
    await store.open()
    await store.close()
    with sqlite3.connect(database) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    with pytest.raises(Unsupported, match="newer version of Hatch") as caught:
        await store.open()
    assert "9999" in caught.value.detail
    with sqlite3.connect(database) as raw:
        assert raw.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]
    raw.close()


def test_an_upgrade_that_fails_leaves_no_table_behind(connection: Connection) -> None:
    connection.exec_driver_sql("CREATE TABLE keys (id TEXT)")
    connection.commit()
    with pytest.raises(OperationalError, match="keys already exists"):
        upgrade(connection)
    tables = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").all()
    assert [table.name for table in tables] == ["keys"]
