"""What every table can do. A column is named like the field it holds, so a flat value needs no mapping of its own."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

from sqlalchemy import ColumnElement, RowMapping, Table, bindparam, delete, insert, select, update

from hatchvm.base.errors import NotFound
from hatchvm.store.lane import Lane

R = TypeVar("R")


class TableRows(Generic[R]):
    """One table inside one unit of work. A subclass names the table, its value, and how users call one."""

    table: ClassVar[Table]
    noun: ClassVar[str]
    value: type[R]

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    async def insert(self, row: R) -> None:
        await self._lane.execute(insert(self.table), self._encode(row))

    async def get(self, row_id: str) -> R:
        return await self._one(self.table.c.id == row_id)

    async def list(self) -> Sequence[R]:
        return await self._many()

    async def delete(self, row_id: str) -> None:
        await self._lane.execute(delete(self.table).where(self.table.c.id == row_id))

    def _encode(self, row: R) -> dict[str, Any]:
        """Column -> value."""
        return {column.name: getattr(row, column.name) for column in self.table.c}

    def _decode(self, columns: RowMapping) -> R:
        """The value that `_encode` took apart."""
        return self.value(**columns)

    async def _one(self, *where: ColumnElement[bool]) -> R:
        found = await self._many(*where)
        if not found:
            raise self._missing()
        return found[0]

    async def _many(self, *where: ColumnElement[bool]) -> builtins.list[R]:
        newest_first = self.table.c.created_at.desc(), self.table.c.id.desc()
        rows = await self._lane.execute(select(self.table).where(*where).order_by(*newest_first))
        return [self._decode(row) for row in rows]

    async def _set(self, row_id: str, values: dict[str, Any]) -> None:
        """Write these columns of one row. Raises NotFound."""
        mine = self.table.c.id == bindparam("row_id")
        statement = update(self.table).where(mine).returning(self.table.c.id)
        if not await self._lane.execute(statement, values | {"row_id": row_id}):
            raise self._missing()

    def _missing(self) -> NotFound:
        return NotFound(f"{self.noun} not found")


class ReplaceableRows(TableRows[R]):
    """Rows that change, and of which the last writer wins."""

    async def update(self, row: R) -> None:
        values = self._encode(row)
        await self._set(values["id"], values)


class OwnedRows(ReplaceableRows[R]):
    """Rows that belong to a VM."""

    async def list_for_vm(self, vm_id: str) -> Sequence[R]:
        return await self._many(self.table.c.vm_id == vm_id)


class NamedRows(TableRows[R]):
    """Rows that users may call by a name."""

    async def find(self, id_or_name: str) -> R:
        # Ids first: nobody can hide a row by naming another one like its id.
        by_id = await self._many(self.table.c.id == id_or_name)
        return by_id[0] if by_id else await self._one(self.table.c.name == id_or_name)
