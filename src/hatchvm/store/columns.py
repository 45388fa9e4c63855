"""Column types that speak the domain's language, so that a row becomes a value without further conversion.

The same types serve every database engine: where one cannot hold a time zone, times are kept as UTC without one.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sqlalchemy import JSON, DateTime, Enum, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator


class Moment(TypeDecorator[datetime]):
    """An aware datetime, to the microsecond; always comes back in UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time without a zone cannot be stored")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class FilePath(TypeDecorator[Path]):
    """A path on this host."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Path | None, dialect: Dialect) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Path | None:
        return None if value is None else Path(value)


class FrozenMap(TypeDecorator[Mapping[str, Any]]):
    """A JSON object that comes back read-only."""

    impl = JSON
    cache_ok = True

    def process_result_value(self, value: dict[str, Any] | None, dialect: Dialect) -> Mapping[str, Any] | None:
        return None if value is None else MappingProxyType(value)


def choice(members: type[StrEnum]) -> Enum:
    """A member of a StrEnum, stored by its value. No CHECK constraint: a new member must not need a migration."""
    return Enum(members, native_enum=False, length=32, values_callable=lambda kind: [member.value for member in kind])
