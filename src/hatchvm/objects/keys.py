"""What an object key looks like: one grammar for every store, narrow enough to be a path and to need no quoting."""

from __future__ import annotations

import re
from typing import Final

from hatchvm.base.errors import Invalid

_KEY: Final = re.compile(r"(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]{1,255}(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]{1,255})*")
#: S3's own limit, in bytes.
_MAX_KEY: Final = 1024


def is_key(key: str) -> bool:
    return len(key) <= _MAX_KEY and _KEY.fullmatch(key) is not None


def checked(key: str) -> str:
    """The key itself. Raises Invalid if it is none."""
    if not is_key(key):
        raise Invalid(f"{key[:80]!r} is not an object key")
    return key


def folder_of(prefix: str) -> str:
    """What a prefix has before its last slash. Raises Invalid if no key can begin so."""
    folder, slash, _ = prefix.rpartition("/")
    return checked(folder) if slash else ""
