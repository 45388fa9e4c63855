"""Custom domains through the whole house: claimed, proven, served by the proxy, changed, taken, deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from hatchvm.base.errors import Conflict, HatchError, Invalid, NotFound, Unavailable
from hatchvm.domain.custom_domain import challenge_of
from hatchvm.domain.route import Route
from hatchvm.domain.vm import VM
from hatchvm.edge.http.server import ProxyServer
from hatchvm.testing.world import SETTINGS, World

APP: Final = "app.example.com"
OTHER: Final = "other.example.com"


@asynccontextmanager
async def proxied(world: World) -> AsyncIterator[int]:
    """The port of a proxy in front of the world."""
    proxy = ProxyServer(
        world.gate, base_domains=SETTINGS.base_domains, wake_timeout_s=30, stream_idle_timeout_s=900, clock=world.clock
    )
    port = await proxy.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        await proxy.close()


async def status(port: int, host: str) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    return int(answer.split()[1])


async def claimed(world: World, vm: VM, domain: str = APP) -> Route:
    """A route with that domain, whose proof is in the DNS."""
    route = await world.house.routes.create(vm.id, subdomain=None, target_port=80, auto_wake=True, domain=domain)
    return prove(world, route)


def prove(world: World, route: Route) -> Route:
    challenge = challenge_of(route)
    assert challenge is not None
    world.resolver.records.setdefault(challenge.name, ["v=spf1 -all"]).append(challenge.value)
    return route


async def refused(work: Awaitable[object], kind: type[HatchError]) -> str:
    with pytest.raises(kind) as error:
        await work
    return error.value.message


async def test_a_domain_is_served_from_its_verification_to_its_change(world: World) -> None:
    vm = await world.vm()
    routes = world.house.routes
    async with proxied(world) as port:
        route = await routes.create(vm.id, subdomain="shop", target_port=80, auto_wake=True, domain=APP)
        challenge = challenge_of(route)
        assert challenge is not None
        told = await refused(routes.verify(route.id), Conflict)
        assert f'"{challenge.name}" with the value "{challenge.value}", found none' in told
        assert (await status(port, APP), routes.serves(APP)) == (502, False)
        assert (await status(port, "shop.hatch.local"), routes.serves("shop.hatch.local")) == (200, True)

        verified = await routes.verify(prove(world, route).id)
        assert verified.verified_domain == APP
        assert (await status(port, f"{APP.upper()}:9090"), routes.serves(APP)) == (200, True)
        assert await status(port, "shop.hatch.local") == 200

        world.resolver.records.clear()
        assert await routes.verify(route.id) == verified, "what is verified is not asked for again"
        same = await routes.update(route.id, domain=APP, subdomain="store")
        assert (same.verified_domain, await status(port, APP)) == (APP, 200)

        changed = await routes.update(route.id, domain=OTHER)
        assert (changed.domain, changed.verified_domain, changed.subdomain) == (OTHER, None, "store")
        assert (await status(port, APP), await status(port, OTHER)) == (502, 502)
        assert (routes.serves(APP), routes.serves(OTHER)) == (False, False)
        assert await status(port, "store.hatch.local") == 200
        await routes.verify(prove(world, changed).id)
        assert await status(port, OTHER) == 200

        bare = await routes.update(route.id, domain="")
        assert (bare.domain, bare.domain_token, bare.domain_verified_at) == (None, None, None)
        assert await status(port, OTHER) == 502
        assert "has no domain" in await refused(routes.verify(route.id), Conflict)


async def test_a_request_for_a_domain_wakes_the_vm(world: World) -> None:
    vm = await world.vm()
    await world.house.routes.verify((await claimed(world, vm)).id)
    await world.vms.snapshot(vm.id)
    async with proxied(world) as port:
        assert await status(port, APP) == 200


async def test_a_domain_ends_with_its_route_and_with_its_vm(world: World) -> None:
    vm = await world.vm()
    routes = world.house.routes
    first = await routes.verify((await claimed(world, vm)).id)
    second = await routes.verify((await claimed(world, vm, OTHER)).id)
    async with proxied(world) as port:
        assert [await status(port, name) for name in (APP, OTHER)] == [200, 200]
        await routes.delete(first.id)
        assert [await status(port, name) for name in (APP, OTHER)] == [502, 200]
        await world.vms.delete(vm.id)
        assert [await status(port, name) for name in (APP, OTHER)] == [502, 502]
    await refused(routes.verify(second.id), NotFound)


async def test_the_first_to_verify_has_a_domain_until_it_is_free_again(world: World) -> None:
    routes = world.house.routes
    mine, theirs = await claimed(world, await world.vm()), await claimed(world, await world.vm())
    assert mine.domain_token != theirs.domain_token
    await routes.verify(mine.id)
    taken = f'domain "{APP}" is already in use'
    assert await refused(routes.verify(theirs.id), Conflict) == taken
    found = world.gate.domain(APP)
    assert found is not None and found.id == mine.id
    await routes.update(mine.id, domain="")
    await routes.verify(theirs.id)
    found = world.gate.domain(APP)
    assert found is not None and found.id == theirs.id


async def test_of_two_that_verify_at_once_one_has_it(world: World) -> None:
    routes = world.house.routes
    claims = [await claimed(world, await world.vm()) for _ in range(3)]
    ended = await asyncio.gather(*(routes.verify(route.id) for route in claims), return_exceptions=True)
    [won] = [one for one in ended if isinstance(one, Route)]
    assert sum(isinstance(one, Conflict) for one in ended) == 2
    assert world.gate.domain(APP) == won


async def test_a_proof_of_one_claim_proves_no_other(world: World) -> None:
    routes = world.house.routes
    vm = await world.vm()
    await claimed(world, vm)
    theirs = await routes.create(vm.id, subdomain=None, target_port=80, auto_wake=True, domain=APP)
    assert "not verified" in await refused(routes.verify(theirs.id), Conflict)


async def test_a_domain_that_changes_while_the_dns_is_asked_is_not_verified(world: World) -> None:
    routes = world.house.routes
    route = await claimed(world, await world.vm())

    async def meanwhile() -> None:
        world.resolver.meanwhile = None
        await routes.update(route.id, domain=OTHER)

    world.resolver.meanwhile = meanwhile
    assert "changed meanwhile" in await refused(routes.verify(route.id), Conflict)
    assert (world.gate.domain(APP), world.gate.domain(OTHER)) == (None, None)


async def test_a_route_that_goes_while_the_dns_is_asked_stays_away(world: World) -> None:
    route = await claimed(world, await world.vm())
    world.resolver.meanwhile = lambda: world.house.routes.delete(route.id)
    assert await refused(world.house.routes.verify(route.id), NotFound) == "route not found"
    assert world.gate.domain(APP) is None


async def test_a_name_server_that_does_not_answer_changes_nothing(world: World) -> None:
    route = await claimed(world, await world.vm())
    world.resolver.trouble = Unavailable("the name server did not answer; try again later")
    assert "name server" in await refused(world.house.routes.verify(route.id), Unavailable)
    world.resolver.trouble = None
    assert (await world.house.routes.verify(route.id)).verified_domain == APP


async def test_names_that_may_not_be_claimed(world: World) -> None:
    routes, vm = world.house.routes, await world.vm()
    route = await claimed(world, vm)
    for domain in ("x.hatch.local", "hatch.localhost", "10.0.0.1", "App.example.com", "*.example.com"):
        made = routes.create(vm.id, subdomain="new", target_port=80, auto_wake=True, domain=domain)
        assert (await refused(made, Invalid)).startswith("domain ")
        assert (await refused(routes.update(route.id, domain=domain), Invalid)).startswith("domain ")
    assert [one.domain for one in await routes.list_for_vm(vm.id)] == [APP, None]


async def test_after_a_restart_a_verified_domain_is_served_and_a_claim_is_not(tmp_path: Path) -> None:
    async with World.running(tmp_path) as before:
        vm = await before.vm()
        mine = await before.house.routes.verify((await claimed(before, vm)).id)
        await claimed(before, vm, OTHER)
        await before.stop()
        after = await World(tmp_path, clock=before.clock).start()
        try:
            assert after.gate.domain(APP) == mine
            assert after.gate.domain(OTHER) is None
            async with proxied(after) as port:
                assert [await status(port, name) for name in (APP, OTHER)] == [200, 502]
        finally:
            after.pagers.close()
            await after.stop()
