"""What SQLite complains about becomes a sentence of ours."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Connection, insert, text

from hatchvm.base.errors import Exhausted, HatchError, Internal, Unavailable
from hatchvm.domain.key import ApiKey
from hatchvm.store import tables
from hatchvm.store.engine import connect
from hatchvm.store.faults import translated
from hatchvm.store.schema import upgrade


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    connection = connect(str(tmp_path / "hatch.db"), busy_timeout_s=0)
    upgrade(connection)
    yield connection
    connection.close()


@pytest.mark.parametrize(
    ("pragma", "kind", "sentence"),
    [
        ("max_page_count = 1", Exhausted, "the disk that holds the database is full"),
        ("query_only = ON", Unavailable, "the database cannot be written"),
    ],
)
def test_a_database_that_cannot_be_written(
    connection: Connection, pragma: str, kind: type[HatchError], sentence: str
) -> None:
    connection.exec_driver_sql(f"PRAGMA {pragma}")
    row = {"id": "key-1", "name": "n" * 10**6, "digest": "d", "created_at": datetime(2026, 3, 6, tzinfo=UTC)}
    with pytest.raises(kind, match=sentence) as caught, translated():
        connection.execute(insert(tables.keys), row)
    assert caught.value.detail.startswith("SQLITE_")


def test_a_statement_of_ours_that_is_wrong_is_our_bug(connection: Connection) -> None:
    with pytest.raises(Internal, match="the database refused a statement"), translated():
        connection.execute(text("SELECT nonsense"))


def test_a_time_without_a_zone_is_our_bug(connection: Connection) -> None:
    naive = ApiKey(id="key-1", name="n", digest="d", created_at=datetime(2026, 3, 6))  # noqa: DTZ001
    row = {column.name: getattr(naive, column.name) for column in tables.keys.c}
    with pytest.raises(Internal, match="the database refused a statement") as caught, translated():
        connection.execute(insert(tables.keys), row)
    assert "without a zone" in caught.value.detail


def test_other_exceptions_pass() -> None:
    with pytest.raises(ZeroDivisionError), translated():
        raise ZeroDivisionError
