"""The API keys' table: digests only."""

from __future__ import annotations

from typing import ClassVar

from sqlalchemy import Table

from hatchvm.domain.key import ApiKey
from hatchvm.store import tables
from hatchvm.store.rows.base import TableRows


class SqlKeyRows(TableRows[ApiKey]):
    """Implements `ports.store.KeyRows`."""

    table: ClassVar[Table] = tables.keys
    noun: ClassVar[str] = "key"
    value = ApiKey

    async def find_digest(self, digest: str) -> ApiKey | None:
        found = await self._many(self.table.c.digest == digest)
        return found[0] if found else None
