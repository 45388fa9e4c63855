"""Custom domains: names outside this house that lead to a route, once their owner has proven to be the owner.

The proof is a TXT record that only who runs the domain's DNS can make. It has a label of its own in front, so that it
stands beside a CNAME of the domain itself. Until then a claim is only a claim: several routes may have it.

The record has to stay: it is asked for again and again, because domains change hands. One that is not there only counts
if the DNS says so, and a domain is lost only after days of it: zones are moved, and mistakes in them are put right.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
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
#: A verified domain is lost when its record was not there so many times in a row, the first of them so long ago.
LOST_MISSES: Final = 3
LOST_AFTER: Final = timedelta(days=3)
#: So often within the pause between two questions about one domain somebody looks who is due, and asks about at most
#: twice the even share of all: after a long stop they are spread over half a pause.
LOOKS: Final = 24


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
    return replace(_unchecked(route), domain=domain, domain_token=token, domain_verified_at=None)


def verified(route: Route, now: datetime) -> Route:
    """The route whose claim was just proven by its user."""
    return replace(_unchecked(route), domain_verified_at=now)


def due(routes: Iterable[Route], now: datetime, pause: timedelta) -> list[Route]:
    """Whose proofs are to be asked for again now, the longest unasked first."""
    served = [(route.domain_checked_at or route.domain_verified_at, route) for route in routes]
    times = sorted((asked, route.id, route) for asked, route in served if asked and route.verified_domain)
    share = -(-2 * len(times) // LOOKS)
    return [route for asked, _, route in times[:share] if now - asked >= pause]


def checked(route: Route, texts: Sequence[str] | None, now: datetime) -> Route:
    """The verified route after its proof was asked for again. `texts`: of the TXT records; None: nobody answered."""
    challenge = challenge_of(route)
    if challenge is None or route.domain_verified_at is None:
        return route
    if texts is None:
        return replace(route, domain_checked_at=now)
    if challenge.value in texts:
        return replace(_unchecked(route), domain_checked_at=now)
    since, misses = route.domain_missing_since or now, route.domain_misses + 1
    lost = misses >= LOST_MISSES and now - since >= LOST_AFTER
    return replace(
        route,
        domain_verified_at=None if lost else route.domain_verified_at,
        domain_checked_at=now,
        domain_missing_since=since,
        domain_misses=misses,
    )


def _unchecked(route: Route) -> Route:
    return replace(route, domain_checked_at=None, domain_missing_since=None, domain_misses=0)


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
