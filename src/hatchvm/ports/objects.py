"""The object store port: immutable objects under keys."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object."""

    key: str
    size: int
    modified_at: datetime


class ObjectStore(Protocol):
    """Seven methods. Keys are `/`-separated segments of `[A-Za-z0-9._-]`, none of them `.` or `..`.

    Every method raises Unavailable if the store cannot be reached and Exhausted if it is full.
    """

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        """Store the object, whole or not at all; durable on return. Repeating the same put is harmless.

        With `if_absent`, raises Conflict if the key exists: exactly one of many racing writers wins.
        """

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """The object, or `length` bytes of it from `start` (fewer at its end). Raises NotFound."""

    async def info(self, key: str) -> ObjectInfo:
        """Size and age. Raises NotFound."""

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Every object whose key starts with `prefix`, in key order."""

    async def delete(self, key: str) -> None:
        """Remove the object; a missing one is success."""

    async def locate(self, key: str) -> str:
        """Where another process of this host can read the object for the next 12 hours, without credentials.

        An absolute path, or an http(s) URL that answers GET, ranged or whole. A URL is a secret, and one signed with
        temporary credentials ends with them. Whether the object exists is not looked at.
        """

    async def check(self) -> None:
        """Prove that the store can be written and read now."""
