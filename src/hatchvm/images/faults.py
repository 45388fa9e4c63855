"""What the host's file system says no to, in words of ours."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from hatchvm.base.errors import Exhausted, Unavailable

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Raise Exhausted for a full disk, Unavailable for any other OSError of the block; `action` begins the sentence."""
    try:
        yield
    except OSError as error:
        kind = Exhausted if error.errno in _FULL else Unavailable
        raise kind(f"{action} failed: {error.strerror}", detail=str(error)) from error
