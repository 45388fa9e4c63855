"""One database connection and the one thread that uses it.

SQLite answers in tens of microseconds; going to a thread and back costs ten times that. So a statement is one such
trip, from compiling it to fetching its rows, and a transaction begins with its first statement. (SQLAlchemy over an
asyncio driver makes four trips a statement and more around it: measured, about three times slower.)

The thread works strictly in order. Whoever gives up waiting leaves nothing half done: what it had asked for is
finished, and what comes next, such as the rollback, comes after it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, Final, Self, TypeVar

from sqlalchemy import Connection, Executable, RowMapping

from hatchvm.store.engine import connect
from hatchvm.store.faults import translated
from hatchvm.store.schema import upgrade

T = TypeVar("T")

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Lane:
    """Serves one unit of work at a time. Raises nothing but what `base.errors` has."""

    def __init__(self, thread: Executor, connection: Connection) -> None:
        self._thread = thread
        self._connection = connection

    @classmethod
    async def open(cls, path: str, *, busy_timeout_s: float) -> Self:
        """Connect, and bring the schema up to date."""
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        try:
            with translated():
                connection = await _run(thread, lambda: _connect(path, busy_timeout_s))
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(thread, connection)

    async def execute(self, statement: Executable, values: Mapping[str, Any] = _NOTHING) -> Sequence[RowMapping]:
        """The rows that `statement` returns, if it returns rows. `values`: column -> what it writes there."""
        with translated(values):
            return await _run(self._thread, lambda: _fetch(self._connection, statement, values))

    async def commit(self) -> None:
        """End the unit of work. Once called it happens, even if the caller is cancelled meanwhile."""
        with translated():
            await _run(self._thread, self._connection.commit)

    async def rollback(self) -> None:
        """Undo the unit of work. Once called it happens, even if the caller is cancelled meanwhile."""
        with translated():
            await _run(self._thread, self._connection.rollback)

    async def close(self) -> None:
        with translated():
            await _run(self._thread, self._connection.close)
        self._thread.shutdown(wait=False)


async def _run(thread: Executor, work: Callable[[], T]) -> T:
    return await asyncio.shield(asyncio.wrap_future(thread.submit(work)))


def _connect(path: str, busy_timeout_s: float) -> Connection:
    connection = connect(path, busy_timeout_s=busy_timeout_s)
    try:
        upgrade(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _fetch(connection: Connection, statement: Executable, values: Mapping[str, Any]) -> Sequence[RowMapping]:
    result = connection.execute(statement, values)
    return result.mappings().all() if result.returns_rows else ()
