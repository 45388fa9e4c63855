"""What keeps a VM awake, as its user is told."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """An SSH session past Hatch, as this host's connection tracking knows it. `silent_s`: since its last packet."""

    peer: str
    silent_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """One reason why a VM is awake.

    `kind`: `http`, `ssh` (a connection: `peer`, `last_byte_at`) or `lease` (`id`, `reason`, `ends_at`). `since` is None
    if nobody saw it begin.
    """

    kind: str
    since: datetime | None
    peer: str = ""
    last_byte_at: datetime | None = None
    reason: str = ""
    ends_at: datetime | None = None
    id: str | None = None
