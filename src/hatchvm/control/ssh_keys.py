"""Use cases over users' SSH keys: see `ports.house.SSHKeys`. Implements `ports.identity.SSHKeys` too.

The fingerprints are kept in memory, so that a login needs no database and a removed key is refused at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from hatchvm.base import ids
from hatchvm.control.context import Context
from hatchvm.domain.public_key import parse
from hatchvm.domain.ssh_key import SSHKey


class SSHKeyCases:
    """Knows no key before `load`."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._fingerprints: set[str] = set()

    async def load(self) -> None:
        """Read the keys, when the daemon starts."""
        self._fingerprints = {key.fingerprint for key in await self.list()}

    async def knows(self, fingerprint: str) -> bool:
        return fingerprint in self._fingerprints

    async def create(self, name: str, public_key: str) -> SSHKey:
        parsed = parse(public_key)
        key = SSHKey(
            id=ids.new(ids.SSH_KEY),
            name=name,
            public_key=parsed.line,
            fingerprint=parsed.fingerprint,
            created_at=self._ctx.clock.now(),
        )
        async with self._ctx.store.begin() as tx:
            await tx.ssh_keys.insert(key)
        self._fingerprints.add(key.fingerprint)
        return key

    async def list(self) -> Sequence[SSHKey]:
        async with self._ctx.store.begin() as tx:
            return await tx.ssh_keys.list()

    async def delete(self, key_id: str) -> None:
        async with self._ctx.store.begin() as tx:
            key = await tx.ssh_keys.get(key_id)
            # Refused from here on, even if the database fails and the row stays until somebody asks again.
            self._fingerprints.discard(key.fingerprint)
            await tx.ssh_keys.delete(key_id)
