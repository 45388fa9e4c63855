"""Use cases over routes: see `ports.house.Routes`. The row is written first, then the table the proxy reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from hatchvm.base import ids
from hatchvm.base.errors import Conflict
from hatchvm.control.context import Context
from hatchvm.control.owner import Owner
from hatchvm.domain.custom_domain import challenge_of, check_domain, check_proof, claim
from hatchvm.domain.route import Route, check_subdomain, name_of, random_subdomain, subdomain_of


class RouteCases:
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    async def create(
        self, vm_id: str, *, subdomain: str | None, target_port: int, auto_wake: bool, domain: str | None = None
    ) -> Route:
        owner = self._ctx.owners.get(vm_id)
        wanted = None if subdomain is None else check_subdomain(subdomain)
        if domain is not None:
            check_domain(domain, self._ctx.settings.base_domains)
        now = self._ctx.clock.now()
        while True:
            route = Route(
                id=ids.new(ids.ROUTE),
                vm_id=vm_id,
                subdomain=wanted or random_subdomain(),
                target_port=target_port,
                auto_wake=auto_wake,
                created_at=now,
                updated_at=now,
            )
            try:
                return await self._insert(owner, claim(route, domain))
            except Conflict:
                if wanted is not None:
                    raise
                # Somebody has that one of 36**12: draw again.

    async def list(self) -> Sequence[Route]:
        async with self._ctx.store.begin() as tx:
            return await tx.routes.list()

    async def list_for_vm(self, vm_id: str) -> Sequence[Route]:
        self._ctx.owners.get(vm_id)
        async with self._ctx.store.begin() as tx:
            return await tx.routes.list_for_vm(vm_id)

    async def update(
        self,
        route_id: str,
        *,
        subdomain: str | None = None,
        target_port: int | None = None,
        auto_wake: bool | None = None,
        domain: str | None = None,
    ) -> Route:
        changes: dict[str, Any] = {"subdomain": subdomain, "target_port": target_port, "auto_wake": auto_wake}
        changes = {name: value for name, value in changes.items() if value is not None}
        if subdomain is not None:
            check_subdomain(subdomain)
        if domain:
            check_domain(domain, self._ctx.settings.base_domains)

        def changed(route: Route) -> Route:
            return replace(route if domain is None else claim(route, domain or None), **changes)

        return await self._change(route_id, changed)

    async def verify(self, route_id: str) -> Route:
        asked = await self._get(route_id)
        challenge = challenge_of(asked)
        if challenge is None:
            raise Conflict("the route has no domain: set one, then verify it")
        if asked.verified_domain is not None:
            return asked
        # Before the VM's turn: a name server may take its time.
        check_proof(challenge, await self._ctx.resolver.txt(challenge.name))

        def verified(route: Route) -> Route:
            if challenge_of(route) != challenge:
                raise Conflict("the route's domain was changed meanwhile: verify it again")
            return replace(route, domain_verified_at=self._ctx.clock.now())

        return await self._change(route_id, verified)

    def serves(self, host: str) -> bool:
        subdomain = subdomain_of(host, self._ctx.settings.base_domains)
        if subdomain is not None:
            return self._ctx.routes.find(subdomain) is not None
        name = name_of(host)
        return name is not None and self._ctx.routes.domain(name) is not None

    async def delete(self, route_id: str) -> None:
        async def verb() -> None:
            async with self._ctx.store.begin() as tx:
                route = await tx.routes.get(route_id)
                await tx.routes.delete(route_id)
            self._ctx.routes.remove(route)

        await (await self._owner(route_id)).do(verb, name="route")

    async def _get(self, route_id: str) -> Route:
        async with self._ctx.store.begin() as tx:
            return await tx.routes.get(route_id)

    async def _owner(self, route_id: str) -> Owner:
        """Who orders the changes of this route: the table the proxy reads then sees them as the rows do."""
        return self._ctx.owners.get((await self._get(route_id)).vm_id)

    async def _insert(self, owner: Owner, route: Route) -> Route:
        """In the VM's turn, so that a route cannot be added to a VM that is being deleted."""

        async def verb() -> Route:
            async with self._ctx.store.begin() as tx:
                await tx.routes.insert(route)
            self._ctx.routes.put(route)
            return route

        return await owner.do(verb, name="route")

    async def _change(self, route_id: str, changed: Callable[[Route], Route]) -> Route:
        async def verb() -> Route:
            async with self._ctx.store.begin() as tx:
                route = replace(changed(await tx.routes.get(route_id)), updated_at=self._ctx.clock.now())
                await tx.routes.update(route)
            self._ctx.routes.put(route)
            return route

        return await (await self._owner(route_id)).do(verb, name="route")
