"""An object store in memory whose time a test steers, and whose every call it may interrupt."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime

from hatchvm.base.clock import Clock
from hatchvm.base.errors import Conflict, NotFound
from hatchvm.objects.keys import checked, folder_of
from hatchvm.ports.objects import ObjectInfo

#: Told of each call before it takes effect (`put`) and after it (`put done`), with its key or prefix.
Hook = Callable[[str, str], Awaitable[None]]


async def no_hook(step: str, key: str) -> None:
    """Let everything pass."""


@dataclass
class MemoryStore:
    """A `ports.objects.ObjectStore`. `whole_seconds`: tell ages as coarsely as S3 does."""

    clock: Clock
    hook: Hook = no_hook
    whole_seconds: bool = False
    objects: dict[str, tuple[bytes, datetime]] = field(default_factory=dict)

    def seen_by(self, hook: Hook) -> MemoryStore:
        """The same objects, asked for by somebody else."""
        return MemoryStore(self.clock, hook, self.whole_seconds, self.objects)

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        await self.hook("put", checked(key))
        if if_absent and key in self.objects:
            raise Conflict("the object exists already")
        now = self.clock.now()
        self.objects[key] = bytes(data), now.replace(microsecond=0) if self.whole_seconds else now
        await self.hook("put done", key)

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        await self.hook("get", key)
        data = self._find(key)[0][start : None if length is None else start + length]
        await self.hook("get done", key)
        return data

    async def info(self, key: str) -> ObjectInfo:
        await self.hook("info", key)
        return self._info(key)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        folder_of(prefix)
        await self.hook("list", prefix)
        found = [self._info(key) for key in sorted(self.objects) if key.startswith(prefix)]
        await self.hook("list done", prefix)
        for info in found:
            yield info

    async def delete(self, key: str) -> None:
        await self.hook("delete", checked(key))
        self.objects.pop(key, None)
        await self.hook("delete done", key)

    async def locate(self, key: str) -> str:
        return f"/memory/{checked(key)}"

    async def check(self) -> None:
        await self.hook("check", "")

    def _find(self, key: str) -> tuple[bytes, datetime]:
        found = self.objects.get(checked(key))
        if found is None:
            raise NotFound(f"no object {key}")
        return found

    def _info(self, key: str) -> ObjectInfo:
        data, modified_at = self._find(key)
        return ObjectInfo(key, len(data), modified_at)
