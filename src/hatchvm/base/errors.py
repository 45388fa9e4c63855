"""Every error that Hatch tells anybody about.

One root, a closed set of kinds. The kind alone decides the HTTP status, the CLI exit code and whether to try
again; nothing else may be read from an error by code. `str(error)` is a sentence fit to show to a user;
`detail` is for the operator's log and never leaves the host. Neither ever holds a secret.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Kind(StrEnum):
    """What a caller can do about an error."""

    INVALID = "invalid"  # mend the request
    UNAUTHENTICATED = "unauthenticated"  # send a key
    FORBIDDEN = "forbidden"  # ask someone who may
    NOT_FOUND = "not_found"  # look elsewhere
    CONFLICT = "conflict"  # read the state, then decide
    UNSUPPORTED = "unsupported"  # this host or driver cannot do it
    EXHAUSTED = "exhausted"  # make room, then try again
    UNAVAILABLE = "unavailable"  # try again later
    UPSTREAM = "upstream"  # the guest misbehaved
    TIMEOUT = "timeout"  # the guest did not answer in time
    CORRUPT = "corrupt"  # stored data is damaged
    INTERNAL = "internal"  # our bug


class HatchError(Exception):
    """Something a caller can be told about."""

    kind: ClassVar[Kind] = Kind.INTERNAL

    def __init__(self, message: str, *, detail: str = "", retry_after_s: float | None = None) -> None:
        """`message`: one public sentence. `detail`: for operators. `retry_after_s`: advice, if known."""
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.retry_after_s = retry_after_s


class Invalid(HatchError):
    """The request can never succeed as it stands; the sentence names the field."""

    kind = Kind.INVALID


class Unauthenticated(HatchError):
    """No key, or not one of ours."""

    kind = Kind.UNAUTHENTICATED


class Forbidden(HatchError):
    """The caller is known and may not."""

    kind = Kind.FORBIDDEN


class NotFound(HatchError):
    """No such thing."""

    kind = Kind.NOT_FOUND


class Conflict(HatchError):
    """The present state forbids it, or the name is taken."""

    kind = Kind.CONFLICT


class StaleGeneration(Conflict):
    """The row changed since it was read: somebody else owns it now."""


class Unsupported(HatchError):
    """This host, driver or snapshot cannot do that."""

    kind = Kind.UNSUPPORTED


class Exhausted(HatchError):
    """No room: memory, disk, ports, addresses."""

    kind = Kind.EXHAUSTED


class Unavailable(HatchError):
    """Not now; the same request may succeed later."""

    kind = Kind.UNAVAILABLE


class Upstream(HatchError):
    """The guest refused or broke the conversation."""

    kind = Kind.UPSTREAM


class UpstreamTimeout(HatchError):
    """The guest did not answer in time."""

    kind = Kind.TIMEOUT


class Corrupt(HatchError):
    """Stored data does not match its digest, or is missing."""

    kind = Kind.CORRUPT


class Internal(HatchError):
    """A bug of ours, or a host that misbehaves in a way we did not foresee."""

    kind = Kind.INTERNAL


#: kind -> HTTP status of the REST API. `internal` is the only 500, and only a bug produces it.
HTTP_STATUS: dict[Kind, int] = {
    Kind.INVALID: 400,
    Kind.UNAUTHENTICATED: 401,
    Kind.FORBIDDEN: 403,
    Kind.NOT_FOUND: 404,
    Kind.CONFLICT: 409,
    Kind.UNSUPPORTED: 409,
    Kind.EXHAUSTED: 503,
    Kind.UNAVAILABLE: 503,
    Kind.UPSTREAM: 502,
    Kind.TIMEOUT: 504,
    Kind.CORRUPT: 503,
    Kind.INTERNAL: 500,
}

#: kind -> CLI exit code.
EXIT_CODE: dict[Kind, int] = {
    Kind.INVALID: 2,
    Kind.UNAUTHENTICATED: 3,
    Kind.FORBIDDEN: 3,
    Kind.NOT_FOUND: 4,
    Kind.CONFLICT: 5,
    Kind.UNSUPPORTED: 6,
    Kind.EXHAUSTED: 7,
    Kind.UNAVAILABLE: 8,
    Kind.UPSTREAM: 9,
    Kind.TIMEOUT: 9,
    Kind.CORRUPT: 10,
    Kind.INTERNAL: 70,
}
