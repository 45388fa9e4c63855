"""From a `Host` header to a route."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hatchvm.base.errors import Upstream
from hatchvm.domain.route import Route, subdomain_of
from hatchvm.ports.gate import Gate

_MAX_REMEMBERED: Final = 65536
_MAX_REMEMBERED_BYTES: Final = 128


class Hosts:
    """Which route a host name leads to. Remembers what names mean, not where they lead: that may change at any time."""

    def __init__(self, gate: Gate, base_domains: Sequence[str]) -> None:
        """`base_domains`: lower case, without a leading dot."""
        self._gate = gate
        self._base_domains = tuple(base_domains)
        self._subdomains: dict[bytes, str] = {}

    def route(self, host: bytes) -> Route:
        """The route for a Host header's value. Raises Upstream with the sentence for the client."""
        subdomain = self._subdomains.get(host)
        if subdomain is None:
            subdomain = self._read(host)
        route = self._gate.route(subdomain)
        if route is None:
            raise Upstream(f'no route for subdomain "{subdomain}"')
        return route

    def _read(self, host: bytes) -> str:
        subdomain = subdomain_of(host.decode("ascii"), self._base_domains)
        if subdomain is None:
            raise Upstream("no subdomain in host header")
        if len(host) <= _MAX_REMEMBERED_BYTES:
            if len(self._subdomains) >= _MAX_REMEMBERED:
                self._subdomains.clear()
            self._subdomains[host] = subdomain
        return subdomain
