"""`/routes` and `/vms/{id}/routes`: which subdomain, and which custom domain, leads to which port of which VM."""

from __future__ import annotations

from fastapi import APIRouter

from hatchvm.api.answers import Deleted, RouteAnswer, route_answer
from hatchvm.api.bodies import RouteCreate, RouteUpdate
from hatchvm.api.context import Ctx
from hatchvm.api.guard import KeyRoute
from hatchvm.api.params import RouteId, VMId
from hatchvm.domain.route import check_subdomain

router = APIRouter(tags=["Routes"], route_class=KeyRoute)


@router.post("/vms/{vm_id}/routes", status_code=201)
async def create_route(context: Ctx, vm_id: VMId, body: RouteCreate) -> RouteAnswer:
    """Lead a subdomain to a port of a VM."""
    given = body.given()
    subdomain = given.get("subdomain")
    if subdomain is not None:
        check_subdomain(subdomain)
    route = await context.house.routes.create(
        vm_id,
        subdomain=subdomain,
        target_port=body.target_port,
        auto_wake=body.auto_wake,
        domain=given.get("domain"),
    )
    return route_answer(route, context)


@router.get("/vms/{vm_id}/routes")
async def list_vm_routes(context: Ctx, vm_id: VMId) -> list[RouteAnswer]:
    """The routes of a VM, newest first."""
    return [route_answer(route, context) for route in await context.house.routes.list_for_vm(vm_id)]


@router.get("/routes")
async def list_routes(context: Ctx) -> list[RouteAnswer]:
    """Every route, newest first."""
    return [route_answer(route, context) for route in await context.house.routes.list()]


@router.patch("/routes/{route_id}")
async def update_route(context: Ctx, route_id: RouteId, body: RouteUpdate) -> RouteAnswer:
    """Change a route; what is left out stays."""
    given = body.given()
    if "subdomain" in given:
        check_subdomain(given["subdomain"])
    if "domain" in given:
        given["domain"] = given["domain"] or ""
    return route_answer(await context.house.routes.update(route_id, **given), context)


@router.post("/routes/{route_id}/verify")
async def verify_route(context: Ctx, route_id: RouteId) -> RouteAnswer:
    """Look for the record of `domain_challenge` in the DNS, and serve the route's domain from now on if it is there."""
    return route_answer(await context.house.routes.verify(route_id), context)


@router.delete("/routes/{route_id}")
async def delete_route(context: Ctx, route_id: RouteId) -> Deleted:
    """Delete a route. Its VM is not touched."""
    await context.house.routes.delete(route_id)
    return Deleted()
