"""Use cases over API keys: see `ports.house.Keys`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hatchvm.base import ids
from hatchvm.control.context import Context
from hatchvm.domain.key import ApiKey, digest_of, new_secret


class KeyCases:
    """`on_change` is called after a key was made or revoked, so that caches forget."""

    def __init__(self, ctx: Context, on_change: Callable[[], None]) -> None:
        self._ctx = ctx
        self._on_change = on_change

    async def create(self, name: str) -> tuple[ApiKey, str]:
        secret = new_secret()
        key = ApiKey(id=ids.new(ids.KEY), name=name, digest=digest_of(secret), created_at=self._ctx.clock.now())
        async with self._ctx.store.begin() as tx:
            await tx.keys.insert(key)
        self._on_change()
        return key, secret

    async def list(self) -> Sequence[ApiKey]:
        async with self._ctx.store.begin() as tx:
            return await tx.keys.list()

    async def delete(self, key_id: str) -> None:
        async with self._ctx.store.begin() as tx:
            await tx.keys.get(key_id)
            await tx.keys.delete(key_id)
        self._on_change()
