"""All routes in memory: what the proxy asks on every request, kept in step with the rows by `control.routes`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from hatchvm.domain.route import Route


class RouteTable:
    """Routes by subdomain, by verified domain, and by VM."""

    def __init__(self) -> None:
        self._by_subdomain: dict[str, Route] = {}
        #: The route for a subdomain, or None. Every request asks, so it is the dictionary's own method.
        self.find: Callable[[str], Route | None] = self._by_subdomain.get
        self._by_domain: dict[str, Route] = {}
        self._by_vm: dict[str, dict[str, Route]] = {}
        #: Told of every change: a route that is there now, or (False) no longer. They must not fail.
        self.watchers: list[Callable[[Route, bool], None]] = []

    def __iter__(self) -> Iterator[Route]:
        return iter(list(self._by_subdomain.values()))

    def __len__(self) -> int:
        return len(self._by_subdomain)

    def load(self, routes: Iterable[Route]) -> None:
        for route in routes:
            self.put(route)

    def domain(self, name: str) -> Route | None:
        """The route that has proven to have this domain (lower case)."""
        return self._by_domain.get(name)

    def of_vm(self, vm_id: str) -> list[Route]:
        return list(self._by_vm.get(vm_id, {}).values())

    def put(self, route: Route) -> None:
        """Add a route, or replace the one with the same id."""
        old = self._by_vm.get(route.vm_id, {}).get(route.id)
        if old is not None:
            self._forget(old)
        self._by_subdomain[route.subdomain] = route
        if route.verified_domain is not None:
            self._by_domain[route.verified_domain] = route
        self._by_vm.setdefault(route.vm_id, {})[route.id] = route
        self._tell(route, there=True)

    def remove(self, route: Route) -> None:
        known = self._by_vm.get(route.vm_id, {}).pop(route.id, None)
        if known is not None:
            self._forget(known)
            self._tell(known, there=False)

    def remove_vm(self, vm_id: str) -> None:
        for route in self._by_vm.pop(vm_id, {}).values():
            self._forget(route)
            self._tell(route, there=False)

    def _forget(self, route: Route) -> None:
        del self._by_subdomain[route.subdomain]
        if route.verified_domain is not None:
            del self._by_domain[route.verified_domain]

    def _tell(self, route: Route, *, there: bool) -> None:
        for watcher in self.watchers:
            watcher(route, there)
