"""Keys of this installation: good ones are remembered, and forgotten on request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from hatchvm.base.tasks import spawn
from hatchvm.domain.key import ApiKey, digest_of, new_secret
from hatchvm.identity.keys import StoredKeys
from hatchvm.ports.store import Store
from hatchvm.store.store import SqlStore

SECRET: Final = new_secret()
KEY: Final = ApiKey(id="key-1", name="laptop", digest=digest_of(SECRET), created_at=datetime(2026, 3, 6, tzinfo=UTC))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = SqlStore(f"sqlite:///{tmp_path}/hatch.db")
    await store.open()
    async with store.begin() as tx:
        await tx.keys.insert(KEY)
    yield store
    await store.close()


async def test_only_a_key_that_was_made_here_is_good(store: Store) -> None:
    keys = StoredKeys(store)
    assert await keys.verify(SECRET)
    assert not await keys.verify(new_secret())
    assert not await keys.verify(KEY.digest)
    assert not await keys.verify("")


async def test_a_good_key_is_not_looked_up_again_until_forgotten(store: Store) -> None:
    keys = StoredKeys(store)
    assert await keys.verify(SECRET)
    async with store.begin() as tx:
        await tx.keys.delete(KEY.id)
    assert await keys.verify(SECRET)
    keys.forget()
    assert not await keys.verify(SECRET)


async def test_a_key_made_after_it_was_refused_is_good(store: Store) -> None:
    keys, secret = StoredKeys(store), new_secret()
    assert not await keys.verify(secret)
    async with store.begin() as tx:
        await tx.keys.insert(ApiKey(id="key-2", name="", digest=digest_of(secret), created_at=KEY.created_at))
    assert await keys.verify(secret)


async def test_a_lookup_that_a_revocation_overtook_is_not_remembered(store: Store) -> None:
    keys = StoredKeys(store)
    async with store.begin():
        looking = spawn(keys.verify(SECRET), name="verify")
        await asyncio.sleep(0)  # it has begun, and waits for its turn
        keys.forget()
    assert await looking
    async with store.begin() as tx:
        await tx.keys.delete(KEY.id)
    assert not await keys.verify(SECRET)
