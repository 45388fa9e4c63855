"""Routes: which host name means which VM and port."""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from hatchvm.base.errors import Invalid

RESERVED: Final = frozenset(
    "api www admin app dashboard mail smtp ftp ssh ns1 ns2 status docs help support billing login auth oauth cdn "
    "static assets media hatch console panel grafana prometheus traefik minio postgres db redis internal".split()
)
_SUBDOMAIN: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_RANDOM_LENGTH: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """`subdomain` under any base domain leads to `target_port` of the VM, and so does `domain` once it is verified.

    `domain_token`: part of what proves the claim on `domain`, see `domain.custom_domain`; no secret. What became of the
    proof since it was verified: when it was last asked for, since when it has been missing, and how often in a row.
    """

    id: str
    vm_id: str
    subdomain: str
    target_port: int
    auto_wake: bool
    created_at: datetime
    updated_at: datetime
    domain: str | None = None
    domain_token: str | None = None
    domain_verified_at: datetime | None = None
    domain_checked_at: datetime | None = None
    domain_missing_since: datetime | None = None
    domain_misses: int = 0

    @property
    def verified_domain(self) -> str | None:
        """The domain, if requests for it may be served."""
        return None if self.domain_verified_at is None else self.domain


def check_subdomain(subdomain: str) -> str:
    """Return it if a user may have it. Raises Invalid."""
    if not _SUBDOMAIN.fullmatch(subdomain):
        raise Invalid(
            "subdomain must have 1 to 63 characters of a-z, 0-9 and '-', and start and end with a letter or a digit"
        )
    if subdomain in RESERVED:
        raise Invalid(f'subdomain "{subdomain}" is reserved')
    return subdomain


def random_subdomain() -> str:
    """12 characters of `[a-z0-9]`: unguessable enough not to collide, short enough to type."""
    alphabet = string.ascii_lowercase + string.digits
    return "".join(secrets.choice(alphabet) for _ in range(_RANDOM_LENGTH))


def name_of(host: str) -> str | None:
    """The lower-case name in a Host header's value, without its port; None if that is no port or a letter not ASCII."""
    if not host.isascii():  # lower() makes ASCII of some other letters
        return None
    name = host.lower()
    head, colon, port = name.rpartition(":")
    if not colon:
        return name
    return None if port and not port.isdigit() else head


def subdomain_of(host: str, base_domains: Sequence[str]) -> str | None:
    """The one label of `host` in front of a base domain, lower case; None if there is not exactly one.

    `host` is a Host header's value: a port is ignored, case too.
    """
    name = name_of(host)
    if name is None:
        return None
    for base in base_domains:
        label = name.removesuffix("." + base)
        if label != name and _SUBDOMAIN.fullmatch(label):
            return label
    return None
