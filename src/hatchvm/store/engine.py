"""Everything that differs between database engines: connecting, starting a transaction, reading an error.

SQLite has one writer at a time. `BEGIN IMMEDIATE` takes its lock before the first read, so no unit of work can be
refused its first write because another process wrote meanwhile.

SQLAlchemy prints a statement's values into its errors unless told not to; they include `user_data`, which may hold
secrets.
"""

from __future__ import annotations

import json
import re
import sqlite3
from functools import partial
from typing import Any, Final

from sqlalchemy import URL, Connection, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from hatchvm.base.errors import Corrupt, Exhausted, HatchError, Internal, Invalid, Unavailable, Unsupported

_PRAGMAS: Final = (
    "journal_mode = WAL",
    "synchronous = NORMAL",  # with WAL: a power failure may undo the last commits, never damage the file
    "foreign_keys = ON",
)
_TAKEN: Final = re.compile(r"UNIQUE constraint failed: (\w+\.\w+)")
#: Names of SQLite's result codes, extended ones by their beginning -> what a caller is told.
_FAULTS: Final[tuple[tuple[str, type[HatchError], str], ...]] = (
    ("SQLITE_FULL", Exhausted, "the disk that holds the database is full"),
    ("SQLITE_BUSY", Unavailable, "the database is busy"),
    ("SQLITE_LOCKED", Unavailable, "the database is busy"),
    ("SQLITE_CANTOPEN", Unavailable, "the database cannot be opened"),
    ("SQLITE_PERM", Unavailable, "the database cannot be opened"),
    ("SQLITE_READONLY", Unavailable, "the database cannot be written"),
    ("SQLITE_IOERR", Unavailable, "the database cannot be read or written"),
    ("SQLITE_CORRUPT", Corrupt, "the database is damaged"),
    ("SQLITE_NOTADB", Corrupt, "the database file is not a database"),
)


def database_path(url: str) -> str:
    """The file that `sqlite:///<path>` names. Raises Invalid or Unsupported, never repeating the URL: it may hold a
    password.
    """
    malformed = Invalid("the database URL is malformed; write it like sqlite:////var/lib/hatch/hatch.db")
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise malformed from None
    if parsed.get_backend_name() != "sqlite":
        raise Unsupported(f'database "{parsed.get_backend_name()}" is not supported; use sqlite:///<path>')
    # Two slashes instead of three make the first folder a host.
    if parsed.host or not parsed.database:
        raise malformed
    return parsed.database


def connect(path: str, *, busy_timeout_s: float) -> Connection:
    """A connection that may be used in the calling thread only. A missing file is made; its folder is not.

    `busy_timeout_s`: how long a statement waits for another process to end its transaction.
    """
    engine = create_engine(
        URL.create("sqlite", database=path),
        poolclass=NullPool,
        # No isolation level: the driver must not begin transactions; it would do so late, and only for some statements.
        connect_args={"timeout": busy_timeout_s, "isolation_level": None},
        hide_parameters=True,
        json_serializer=partial(json.dumps, default=dict),  # read-only mappings
    )
    event.listen(engine, "connect", _on_connect)
    event.listen(engine, "begin", _on_begin)
    return engine.connect()


def taken_column(error: DBAPIError) -> str | None:
    """The `table.column` whose uniqueness a statement would have broken."""
    match = _TAKEN.search(str(error.orig))
    return match.group(1) if match else None


def is_dangling(error: DBAPIError) -> bool:
    """True if a statement referred to a row that does not exist."""
    return _code(error) == "SQLITE_CONSTRAINT_FOREIGNKEY"


def fault(error: DBAPIError) -> HatchError:
    """What to tell a caller about a database that did not do its part."""
    detail = f"{_code(error)}: {error.orig}"
    for code, kind, sentence in _FAULTS:
        if _code(error).startswith(code):
            return kind(sentence, detail=detail)
    return Internal("the database refused a statement", detail=detail)


def _on_connect(connection: Any, _: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _on_begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _code(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlite_errorname", "") if isinstance(error.orig, sqlite3.Error) else ""
