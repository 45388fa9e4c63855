"""A `Resolver` without a DNS."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from hatchvm.base.errors import HatchError


class FakeResolver:
    """Answers with `records` (name -> texts). `trouble`, if set, is raised. `meanwhile`, if set, is awaited first."""

    def __init__(self) -> None:
        self.records: dict[str, list[str]] = {}
        self.trouble: HatchError | None = None
        self.meanwhile: Callable[[], Awaitable[object]] | None = None

    async def txt(self, name: str) -> Sequence[str]:
        if self.meanwhile is not None:
            await self.meanwhile()
        if self.trouble is not None:
            raise self.trouble
        return self.records.get(name, [])
