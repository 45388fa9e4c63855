"""Custom domains: names outside this house that lead to a route, once their owner has proven to be the owner.

The proof is a TXT record that only who runs the domain's DNS can make. It has a label of its own in front, so that it
stands beside a CNAME of the domain itself. Until then a claim is only a claim: several routes may have it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from hatchvm.base.errors import Conflict, Invalid
from hatchvm.domain.route import Route

_PROOF_LABEL: Final = "_hatchvm."
#: Of a domain. A name in the DNS has at most 253 characters (RFC 1035, 2.3.4), and the record's is the longest here.
MAX_LENGTH: Final = 253 - len(_PROOF_LABEL)
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
#: What is shown of an answer that is not the expected one: whoever runs the DNS may have put anything there.
_SHOWN_TEXTS: Final = 3
_SHOWN_LENGTH: Final = 80


@dataclass(frozen=True, slots=True)
class Challenge:
    """The TXT record that proves a claim: its full name, without a final dot, and its text."""

    name: str
    value: str


def check_domain(domain: str, base_domains: Sequence[str]) -> str:
    """Return it if a user may claim it in a house that serves these base domains. Raises Invalid."""
    if not domain.isascii():
        raise Invalid("domain must be ASCII: write an international name as the DNS has it, like xn--bcher-kva.example")
    if "*" in domain:
        raise Invalid("domain must be one name, without a wildcard")
    labels = domain.split(".")
    if len(domain) > MAX_LENGTH or not all(_LABEL.fullmatch(label) for label in labels):
        raise Invalid(
            f"domain must be a host name like app.example.com: at most {MAX_LENGTH} characters, labels of 1 to 63 of "
            "a-z, 0-9 and inner '-', no final dot"
        )
    if len(labels) < 2:
        raise Invalid("domain must have a dot, like app.example.com")
    if not labels[-1][0].isalpha():  # browsers read such a name as an IPv4 address, hexadecimal parts too
        raise Invalid("domain must be a name, not an IP address")
    for base in base_domains:
        if domain == base or domain.endswith("." + base):
            raise Invalid(f'domain lies under "{base}", where this host\'s subdomains are: set subdomain instead')
    return domain


def claim(route: Route, domain: str | None) -> Route:
    """The route with that domain, unproven, or without one. The one it has already stays as it is, proof included."""
    if domain == route.domain:
        return route
    token = None if domain is None else secrets.token_hex(16)
    return replace(route, domain=domain, domain_token=token, domain_verified_at=None)


def challenge_of(route: Route) -> Challenge | None:
    """What is to be put into the DNS; None if the route has no domain."""
    if route.domain is None:
        return None
    return Challenge(_PROOF_LABEL + route.domain, f"hatchvm-verify={route.domain_token}")


def check_proof(challenge: Challenge, texts: Sequence[str]) -> None:
    """Raises Conflict, saying what was expected and found, unless the texts of the TXT records are the proof."""
    if challenge.value in texts:
        return
    shown = [f'"{_harmless(text)}"' for text in texts[:_SHOWN_TEXTS]]
    more = ["and more"] if len(texts) > _SHOWN_TEXTS else []
    raise Conflict(
        f'domain not verified: expected a TXT record named "{challenge.name}" with the value "{challenge.value}", '
        f"found {', '.join(shown + more) or 'none'}"
    )


def _harmless(text: str) -> str:
    kept = text if len(text) <= _SHOWN_LENGTH else text[:_SHOWN_LENGTH] + "…"
    return "".join(letter if letter.isprintable() else "?" for letter in kept)
