"""The keys that this installation made itself."""

from __future__ import annotations

from hatchvm.domain.key import digest_of
from hatchvm.ports.store import Store


class StoredKeys:
    """Implements `ports.identity.Verifier` over the store. A key found good is remembered until `forget`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._good: set[str] = set()

    async def verify(self, secret: str) -> bool:
        digest = digest_of(secret)
        good = self._good
        if digest in good:
            return True
        async with self._store.begin() as tx:
            found = await tx.keys.find_digest(digest) is not None
        if found:
            # Into the set of before the query: had `forget` come meanwhile, this answer may be out of date.
            good.add(digest)
        return found

    def forget(self) -> None:
        """Remember nothing. To be called after a key's row is deleted."""
        self._good = set()
