"""Routes: which subdomain means which VM and port."""

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
    """`subdomain` under any base domain leads to `target_port` of the VM."""

    id: str
    vm_id: str
    subdomain: str
    target_port: int
    auto_wake: bool
    created_at: datetime
    updated_at: datetime


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


def subdomain_of(host: str, base_domains: Sequence[str]) -> str | None:
    """The one label of `host` in front of a base domain, lower case; None if there is not exactly one.

    `host` is a Host header's value: a port is ignored, case too.
    """
    if not host.isascii():  # lower() makes ASCII of some other letters
        return None
    name = host.lower()
    head, colon, port = name.rpartition(":")
    if colon:
        if port and not port.isdigit():
            return None
        name = head
    for base in base_domains:
        label = name.removesuffix("." + base)
        if label != name and _SUBDOMAIN.fullmatch(label):
            return label
    return None
