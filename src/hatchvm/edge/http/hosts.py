"""From a `Host` header to a route."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hatchvm.base.errors import Upstream
from hatchvm.domain.route import Route, name_of, subdomain_of
from hatchvm.ports.gate import Gate

_MAX_REMEMBERED: Final = 65536
_MAX_REMEMBERED_BYTES: Final = 128


class Hosts:
    """Which route a host name leads to. Remembers what names mean, not where they lead: that may change at any time."""

    def __init__(self, gate: Gate, base_domains: Sequence[str]) -> None:
        """`base_domains`: lower case, without a leading dot."""
        self._gate = gate
        self._base_domains = tuple(base_domains)
        self._names: dict[bytes, str] = {}

    def route(self, host: bytes) -> Route:
        """The route for a Host header's value. Raises Upstream with the sentence for the client."""
        name = self._names.get(host)
        if name is None:
            name = self._read(host)
        if "." in name:
            route = self._gate.domain(name)
            if route is None:
                raise Upstream("no subdomain in host header")
            return route
        route = self._gate.route(name)
        if route is None:
            raise Upstream(f'no route for subdomain "{name}"')
        return route

    def _read(self, host: bytes) -> str:
        """A subdomain, which has no dot, or what can only be a custom domain, which has one."""
        text = host.decode("ascii")
        name = subdomain_of(text, self._base_domains)
        if name is None:
            name = name_of(text)
            if name is None or "." not in name:
                raise Upstream("no subdomain in host header")
        if len(host) <= _MAX_REMEMBERED_BYTES:
            if len(self._names) >= _MAX_REMEMBERED:
                self._names.clear()
            self._names[host] = name
        return name
