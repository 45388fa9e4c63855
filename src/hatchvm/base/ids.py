"""Identifiers: a prefix that tells the kind, a dash, 12 lowercase hex digits (48 random bits)."""

from __future__ import annotations

import re
import secrets
from typing import Final

VM: Final = "vm"
ROUTE: Final = "rt"
SNAPSHOT: Final = "snap"
IMAGE: Final = "img"
TEMPLATE: Final = "tpl"
KEY: Final = "key"
LEASE: Final = "hold"
SSH_KEY: Final = "ssh"

_SHAPE: Final = re.compile(r"(vm|rt|snap|img|tpl|key|hold|ssh)-[0-9a-f]{12}")


def new(prefix: str) -> str:
    """A fresh identifier, e.g. `vm-3f0a9c11d2e4`."""
    return f"{prefix}-{secrets.token_hex(6)}"


def is_id(text: str, prefix: str) -> bool:
    """True if `text` has the shape of an identifier of that kind. Ids become path components: check first."""
    match = _SHAPE.fullmatch(text)
    return match is not None and match.group(1) == prefix
