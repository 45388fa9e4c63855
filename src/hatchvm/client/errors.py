"""What a daemon refused."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from hatchvm.base.errors import Kind

_KIND: Final = MappingProxyType(
    {
        401: Kind.UNAUTHENTICATED,
        403: Kind.FORBIDDEN,
        404: Kind.NOT_FOUND,
        409: Kind.CONFLICT,
        502: Kind.UPSTREAM,
        503: Kind.UNAVAILABLE,
        504: Kind.TIMEOUT,
    }
)


class ApiError(Exception):
    """The daemon answered a call with an error. `str(error)` is its sentence, `answer` all that it said."""

    def __init__(
        self,
        status: int,
        sentence: str,
        *,
        retry_after_s: float | None = None,
        answer: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.answer = answer
        self.retry_after_s = retry_after_s

    @property
    def kind(self) -> Kind:
        """What the caller can do about it, read from the status."""
        if self.status in _KIND:
            return _KIND[self.status]
        return Kind.INVALID if 400 <= self.status < 500 else Kind.INTERNAL
