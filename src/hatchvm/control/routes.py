"""Use cases over routes: see `ports.house.Routes`. The row is written first, then the table the proxy reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import structlog

from hatchvm.base import ids
from hatchvm.base.errors import Conflict, HatchError, NotFound, Unavailable
from hatchvm.control.context import Context
from hatchvm.control.owner import Owner
from hatchvm.domain import custom_domain
from hatchvm.domain.custom_domain import challenge_of, check_domain, check_proof, claim
from hatchvm.domain.route import Route, check_subdomain, name_of, random_subdomain, subdomain_of
from hatchvm.telemetry import logs

_log = structlog.get_logger()

#: The first look at custom domains comes so long after the start, the others no closer together.
_FIRST_S: Final = 60.0
_SHORTEST_S: Final = 1.0


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
            kept = route if domain is None else claim(route, domain or None)
            return replace(kept, **changes, updated_at=self._ctx.clock.now())

        return await self._change(route_id, changed)

    async def verify(self, route_id: str) -> Route:
        asked = await self._get(route_id)
        challenge = challenge_of(asked)
        if challenge is None:
            raise Conflict("the route has no domain: set one, then verify it")
        if asked.verified_domain is not None and asked.domain_missing_since is None:
            return asked
        # Before the VM's turn: a name server may take its time.
        check_proof(challenge, await self._ctx.resolver.txt(challenge.name))

        def verified(route: Route) -> Route:
            if challenge_of(route) != challenge:
                raise Conflict("the route's domain was changed meanwhile: verify it again")
            now = self._ctx.clock.now()
            return replace(custom_domain.verified(route, now), updated_at=now)

        return await self._change(route_id, verified)

    async def run(self) -> None:
        """Ask for the proofs of verified domains again and again, until cancelled; never if the house is set so."""
        if not self._ctx.settings.domain_recheck_s:
            return
        pause_s = max(_SHORTEST_S, self._ctx.settings.domain_recheck_s / custom_domain.LOOKS)
        await asyncio.sleep(min(_FIRST_S, pause_s))
        while True:
            await self.check_domains()
            await asyncio.sleep(pause_s)

    async def check_domains(self) -> None:
        """Ask for the proofs that are due."""
        pause = timedelta(seconds=self._ctx.settings.domain_recheck_s)
        for route in custom_domain.due(self._ctx.routes, self._ctx.clock.now(), pause):
            try:
                await self._check(route)
            except NotFound:
                continue  # deleted meanwhile
            except HatchError as error:  # the rows cannot be written: it stays due
                _not_checked(route, error)

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

    async def _check(self, asked: Route) -> None:
        challenge = challenge_of(asked)
        if challenge is None:
            return
        texts: Sequence[str] | None = None
        try:
            texts = await self._ctx.resolver.txt(challenge.name)
        except Unavailable as error:
            _not_checked(asked, error)

        def checked(route: Route) -> Route:
            if challenge_of(route) != challenge:
                return route  # it was changed meanwhile
            return custom_domain.checked(route, texts, self._ctx.clock.now())

        route = await self._change(asked.id, checked)
        if route.domain_misses > asked.domain_misses:
            event = logs.DOMAIN_UNPROVEN if route.verified_domain else logs.DOMAIN_LOST
            _log.warning(event, route=route.id, domain=route.domain, record=challenge.name, misses=route.domain_misses)

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
                route = changed(await tx.routes.get(route_id))
                await tx.routes.update(route)
            self._ctx.routes.put(route)
            return route

        return await (await self._owner(route_id)).do(verb, name="route")


def _not_checked(route: Route, error: HatchError) -> None:
    _log.warning(logs.DOMAIN_NOT_CHECKED, route=route.id, domain=route.domain, error=str(error), detail=error.detail)
