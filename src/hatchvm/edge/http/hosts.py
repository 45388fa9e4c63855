"""From a `Host` header to a route."""

from __future__ import annotations

from collections.abc import Sequence

from hatchvm.base.errors import Upstream
from hatchvm.domain.route import Route, name_of, subdomain_of
from hatchvm.ports.gate import Gate


class Hosts:
    """Which route a host name leads to."""

    def __init__(self, gate: Gate, base_domains: Sequence[str]) -> None:
        """`base_domains`: lower case, without a leading dot."""
        self._gate = gate
        self._base_domains = tuple(base_domains)
        self._bases = frozenset(base.encode() for base in base_domains)

    def route(self, host: bytes) -> Route:
        """The route for a Host header's value. Raises Upstream with the sentence for the client."""
        label, _, rest = host.partition(b".")
        base, colon, port = rest.partition(b":")
        if base in self._bases and (not colon or port.isdigit()):
            # What a route is called needs no more checks.
            route = self._gate.route(label.decode())
            if route is not None:
                return route
        return self._read(host.decode("ascii"))

    def _read(self, host: str) -> Route:
        """Other spellings, custom domains, and what is wrong with the rest."""
        subdomain = subdomain_of(host, self._base_domains)
        if subdomain is not None:
            route = self._gate.route(subdomain)
            if route is None:
                raise Upstream(f'no route for subdomain "{subdomain}"')
            return route
        name = name_of(host)
        route = self._gate.domain(name) if name else None
        if route is None:
            raise Upstream("no subdomain in host header")
        return route
