"""The routes of the house in memory: see `testing.house`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from hatchvm.base import ids
from hatchvm.base.errors import Conflict
from hatchvm.domain.custom_domain import challenge_of, check_domain, check_proof, claim
from hatchvm.domain.route import Route, name_of, random_subdomain, subdomain_of

if TYPE_CHECKING:
    from hatchvm.testing.house import FakeHouse

_BASE_DOMAINS: Final = ("hatch.localhost",)


class FakeRoutes:
    """`texts`: of the TXT records that there are, whatever their names."""

    def __init__(self, house: FakeHouse) -> None:
        self._house = house
        self.texts: list[str] = []

    async def create(
        self, vm_id: str, *, subdomain: str | None, target_port: int, auto_wake: bool, domain: str | None = None
    ) -> Route:
        now = self._house.now()
        vm = self._house.vm_rows.find(vm_id)
        if domain is not None:
            check_domain(domain, _BASE_DOMAINS)
        route = Route(
            id=ids.new(ids.ROUTE),
            vm_id=vm.id,
            subdomain=subdomain or random_subdomain(),
            target_port=target_port,
            auto_wake=auto_wake,
            created_at=now,
            updated_at=now,
        )
        return self._put(claim(route, domain))

    async def list(self) -> Sequence[Route]:
        self._house.now()
        return self._house.route_rows.newest_first()

    async def list_for_vm(self, vm_id: str) -> Sequence[Route]:
        vm = await self._house.vms.get(vm_id)
        return [route for route in self._house.route_rows.newest_first() if route.vm_id == vm.id]

    async def update(
        self,
        route_id: str,
        *,
        subdomain: str | None = None,
        target_port: int | None = None,
        auto_wake: bool | None = None,
        domain: str | None = None,
    ) -> Route:
        now = self._house.now()
        route = self._house.route_rows.find(route_id)
        changes = {"subdomain": subdomain, "target_port": target_port, "auto_wake": auto_wake}
        given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
        if domain is not None:
            route = claim(route, check_domain(domain, _BASE_DOMAINS) if domain else None)
        return self._put(replace(route, updated_at=now, **given))

    async def verify(self, route_id: str) -> Route:
        now = self._house.now()
        route = self._house.route_rows.find(route_id)
        challenge = challenge_of(route)
        if challenge is None:
            raise Conflict("the route has no domain: set one, then verify it")
        check_proof(challenge, self.texts)
        return self._put(replace(route, updated_at=now, domain_verified_at=now))

    def serves(self, host: str) -> bool:
        name, subdomain = name_of(host), subdomain_of(host, _BASE_DOMAINS)
        return any(
            subdomain == route.subdomain or (name is not None and name == route.verified_domain)
            for route in self._house.route_rows.values()
        )

    async def delete(self, route_id: str) -> None:
        self._house.now()
        del self._house.route_rows[self._house.route_rows.find(route_id).id]

    def _put(self, route: Route) -> Route:
        rows = self._house.route_rows
        if any(other.subdomain == route.subdomain and other.id != route.id for other in rows.values()):
            raise Conflict(f'subdomain "{route.subdomain}" is already in use')
        return rows.put(route)
