"""An object store whose objects age as fast as a test wants, whatever clock its server has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from hatchvm.ports.objects import ObjectInfo, ObjectStore
from hatchvm.snapshots.shelf import CLOCK
from hatchvm.testing.clock import SteeredClock

_LOOK_S: Final = 0.02


class AgingStore:
    """`inner`, whose clock leaps with the test's: what was stored before `pass_time` is that much older after it.

    `clean`: the same objects, by a way that does not fail.
    """

    def __init__(self, inner: ObjectStore, clean: ObjectStore, clock: SteeredClock) -> None:
        self.clean = clean
        self._inner = inner
        self._clock = clock
        self._leaps: list[tuple[datetime, timedelta]] = []
        self.put = inner.put
        self.get = inner.get
        self.delete = inner.delete
        self.locate = inner.locate
        self.check = inner.check

    async def info(self, key: str) -> ObjectInfo:
        return self._told(await self._inner.info(key))

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        async for info in self._inner.list(prefix):
            yield self._told(info)

    async def pass_time(self, passed: timedelta) -> None:
        """In the first moment of a second of the store's: it dates objects to the second."""
        before = await self._now()
        while (now := await self._now()) == before:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
        self._leaps.append((now, passed))
        self._clock.advance(passed.total_seconds())

    async def _now(self) -> datetime:
        await self.clean.put(CLOCK, b"")
        return (await self.clean.info(CLOCK)).modified_at

    def _told(self, info: ObjectInfo) -> ObjectInfo:
        leapt = sum((passed for at, passed in self._leaps if at <= info.modified_at), timedelta())
        return replace(info, modified_at=info.modified_at + leapt)
