"""Proofs of custom domains that vanish: the domain is served for days still, then no longer."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import pytest
from structlog.testing import capture_logs

from hatchvm.base import tasks
from hatchvm.base.errors import Conflict, Unavailable
from hatchvm.domain.custom_domain import challenge_of
from hatchvm.domain.route import Route
from hatchvm.telemetry import logs
from hatchvm.testing.clock import SteeredClock
from hatchvm.testing.vmm import no_hook
from hatchvm.testing.world import World

APP: Final = "app.example.com"
HOUR_S: Final = 3600.0
DAY_S: Final = 24 * HOUR_S


async def proven(world: World, domain: str = APP) -> Route:
    vm = await world.vm()
    route = await world.house.routes.create(vm.id, subdomain=None, target_port=80, auto_wake=True, domain=domain)
    prove(world, route)
    return await world.house.routes.verify(route.id)


def prove(world: World, route: Route) -> None:
    challenge = challenge_of(route)
    assert challenge is not None
    world.resolver.records.setdefault(challenge.name, []).append(challenge.value)


async def now(world: World, route: Route) -> Route:
    async with world.ctx.store.begin() as tx:
        return await tx.routes.get(route.id)


async def days_pass(world: World, days: int) -> list[str]:
    """A day, then a look, so many times; what was logged."""
    with capture_logs() as lines:
        for _ in range(days):
            world.clock.advance(DAY_S)
            await world.house.routes.check_domains()
    return [line["event"] for line in lines if "domain" in line["event"]]


async def test_a_domain_whose_record_stays_away_is_lost_after_days(world: World) -> None:
    route = await proven(world)
    assert await days_pass(world, 3) == []
    assert (await now(world, route)).updated_at == route.updated_at
    world.resolver.records.clear()
    assert await days_pass(world, 3) == [logs.DOMAIN_UNPROVEN] * 3
    assert world.gate.domain(APP) == await now(world, route), "still served"
    assert await days_pass(world, 1) == [logs.DOMAIN_LOST]
    lost = await now(world, route)
    assert (world.gate.domain(APP), world.house.routes.serves(APP), lost.verified_domain) == (None, False, None)
    assert lost.domain_missing_since is not None
    assert world.house.routes.serves(f"{route.subdomain}.hatch.local")
    assert await days_pass(world, 2) == [], "what is not served is not asked about"
    prove(world, lost)
    again = await world.house.routes.verify(route.id)
    assert (again.verified_domain, again.domain_missing_since, again.domain_misses) == (APP, None, 0)
    assert world.gate.domain(APP) == again


async def test_a_domain_that_was_lost_is_had_by_its_new_owner(world: World) -> None:
    await proven(world)
    vm = await world.vm()
    theirs = await world.house.routes.create(vm.id, subdomain=None, target_port=80, auto_wake=True, domain=APP)
    world.resolver.records.clear()
    prove(world, theirs)
    with pytest.raises(Conflict, match="already in use"):
        await world.house.routes.verify(theirs.id)
    await days_pass(world, 4)
    assert await world.house.routes.verify(theirs.id) == world.gate.domain(APP)


async def test_name_servers_that_do_not_answer_count_for_nothing(world: World) -> None:
    route = await proven(world)
    world.resolver.trouble = Unavailable("the name server did not answer; try again later", detail="SERVFAIL")
    assert await days_pass(world, 30) == [logs.DOMAIN_NOT_CHECKED] * 30
    assert (await now(world, route)).domain_misses == 0
    assert world.house.routes.serves(APP)


async def test_a_record_that_comes_back_ends_the_count_by_itself_or_by_verify(world: World) -> None:
    route = await proven(world)
    challenge = challenge_of(route)
    assert challenge is not None
    for by_user in (False, True):
        world.resolver.records.clear()
        await days_pass(world, 2)
        assert (await now(world, route)).domain_misses == 2
        if by_user:
            with pytest.raises(Conflict, match="found none"):
                await world.house.routes.verify(route.id)
            assert world.house.routes.serves(APP), "asking too early costs nothing"
        prove(world, route)
        await (world.house.routes.verify(route.id) if by_user else days_pass(world, 1))
        assert ((await now(world, route)).domain_misses, world.house.routes.serves(APP)) == (0, True)


async def test_what_changes_while_the_dns_is_asked_stays_as_it_was_changed(world: World) -> None:
    route = await proven(world)
    world.resolver.records.clear()

    async def meanwhile() -> None:
        world.resolver.meanwhile = None
        prove(world, await world.house.routes.update(route.id, domain="other.example.com"))
        await world.house.routes.verify(route.id)

    world.resolver.meanwhile = meanwhile
    assert await days_pass(world, 1) == []
    assert (await now(world, route)).domain_missing_since is None
    world.resolver.meanwhile = lambda: world.house.routes.delete(route.id)
    assert await days_pass(world, 1) == []
    assert world.gate.domain("other.example.com") is None


async def test_rows_that_cannot_be_written_leave_it_due(world: World) -> None:
    route = await proven(world)
    world.resolver.records.clear()
    world.step.fail_at("commit", Unavailable("the database is locked"))
    assert await days_pass(world, 1) == [logs.DOMAIN_NOT_CHECKED]
    assert world.gate.domain(APP) == route
    world.step.interfere = no_hook
    await world.house.routes.check_domains()
    assert (await now(world, route)).domain_misses == 1


async def test_the_misses_are_counted_over_restarts(tmp_path: Path) -> None:
    clock = SteeredClock()
    async with World.running(tmp_path, clock=clock) as world:
        await proven(world)
    for served in (True, True, True, False):
        async with World.running(tmp_path, clock=clock) as world:
            assert world.house.routes.serves(APP)
            await days_pass(world, 1)
            assert world.house.routes.serves(APP) == served


@pytest.mark.parametrize(("recheck_s", "asked"), [(24 * HOUR_S, True), (0.0, False)])
async def test_somebody_looks_again_and_again_unless_told_not_to(tmp_path: Path, recheck_s: float, asked: bool) -> None:
    asking = asyncio.Event()

    async def meanwhile() -> None:
        asking.set()

    async with World.running(tmp_path, domain_recheck_s=recheck_s) as world:
        await proven(world)
        world.resolver.meanwhile = meanwhile
        looking = tasks.spawn(world.house.routes.run(), name="check domains")
        while not asking.is_set() and not looking.done():
            world.clock.advance(HOUR_S)
            await asyncio.sleep(0)
        assert asking.is_set() == asked
        await tasks.cancel_and_wait(looking)
