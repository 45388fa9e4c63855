"""API keys: only their hash is kept."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One key. `digest` is SHA-256 of 256 random bits: a slow hash would add nothing."""

    id: str
    name: str
    digest: str
    created_at: datetime


def new_secret() -> str:
    """A fresh key, shown once: `hatch_` and 43 characters (256 bits)."""
    return "hatch_" + secrets.token_urlsafe(32)


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
