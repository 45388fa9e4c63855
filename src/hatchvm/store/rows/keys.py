"""The tables of keys: API keys, of which there are digests only, and users' public SSH keys."""

from __future__ import annotations

from typing import ClassVar

from sqlalchemy import Table

from hatchvm.domain.key import ApiKey
from hatchvm.domain.ssh_key import SSHKey
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


class SqlSSHKeyRows(TableRows[SSHKey]):
    """Implements `ports.store.SSHKeyRows`."""

    table: ClassVar[Table] = tables.ssh_keys
    noun: ClassVar[str] = "ssh key"
    value = SSHKey

    async def find_fingerprint(self, fingerprint: str) -> SSHKey | None:
        found = await self._many(self.table.c.fingerprint == fingerprint)
        return found[0] if found else None
