"""Use cases over routes: see `ports.house.Routes`. The row is written first, then the table the proxy reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from hatchvm.base import ids
from hatchvm.base.errors import Conflict
from hatchvm.control.context import Context
from hatchvm.control.owner import Owner
from hatchvm.domain.route import Route, check_subdomain, random_subdomain


class RouteCases:
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    async def create(self, vm_id: str, *, subdomain: str | None, target_port: int, auto_wake: bool) -> Route:
        owner = self._ctx.owners.get(vm_id)
        wanted = None if subdomain is None else check_subdomain(subdomain)
        while True:
            name = wanted or random_subdomain()
            try:
                return await owner.do(partial(self._insert, vm_id, name, target_port, auto_wake), name="route")
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
    ) -> Route:
        changes: dict[str, Any] = {"subdomain": subdomain, "target_port": target_port, "auto_wake": auto_wake}
        changes = {name: value for name, value in changes.items() if value is not None}
        if subdomain is not None:
            check_subdomain(subdomain)

        async def verb() -> Route:
            async with self._ctx.store.begin() as tx:
                old = await tx.routes.get(route_id)
                route = replace(old, **changes, updated_at=self._ctx.clock.now())
                await tx.routes.update(route)
            self._ctx.routes.put(route)
            return route

        return await (await self._owner(route_id)).do(verb, name="route")

    async def delete(self, route_id: str) -> None:
        async def verb() -> None:
            async with self._ctx.store.begin() as tx:
                route = await tx.routes.get(route_id)
                await tx.routes.delete(route_id)
            self._ctx.routes.remove(route)

        await (await self._owner(route_id)).do(verb, name="route")

    async def _owner(self, route_id: str) -> Owner:
        """Who orders the changes of this route: the table the proxy reads then sees them as the rows do."""
        async with self._ctx.store.begin() as tx:
            route = await tx.routes.get(route_id)
        return self._ctx.owners.get(route.vm_id)

    async def _insert(self, vm_id: str, subdomain: str, target_port: int, auto_wake: bool) -> Route:
        """In the VM's turn, so that a route cannot be added to a VM that is being deleted."""
        now = self._ctx.clock.now()
        route = Route(
            id=ids.new(ids.ROUTE),
            vm_id=vm_id,
            subdomain=subdomain,
            target_port=target_port,
            auto_wake=auto_wake,
            created_at=now,
            updated_at=now,
        )
        async with self._ctx.store.begin() as tx:
            await tx.routes.insert(route)
        self._ctx.routes.put(route)
        return route
