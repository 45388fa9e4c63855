"""What machines ask without a key: is it alive, is it ready, how does it do."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import choose_encoder

from hatchvm.api import problems
from hatchvm.api.accept import wants_metrics
from hatchvm.api.answers import Health, Ready, ready_answer
from hatchvm.api.context import Ctx
from hatchvm.base.errors import HatchError

router = APIRouter(tags=["Health"])

_TEXT: Final = {"content": {"text/plain": {"schema": {"type": "string"}}}}


@router.get("/healthz", response_model=Health, responses={200: _TEXT})
async def healthz(context: Ctx, request: Request) -> Health | Response:
    """Whether the node lives, and how much it looks after. A Prometheus scraper gets the same facts as metrics."""
    vm_count, route_count = await context.house.health()
    if not wants_metrics(request.headers.get("accept", "")):
        return Health(vm_count=vm_count, route_count=route_count)
    registry = CollectorRegistry()
    Gauge("hatch_vm_count", "VMs that this node manages", registry=registry).set(vm_count)
    Gauge("hatch_route_count", "Routes that lead to them", registry=registry).set(route_count)
    return _exposition(registry, request)


@router.get("/readyz", response_model=Ready)
async def readyz(context: Ctx) -> Ready | Response:
    """Whether requests can be served now; 503 with the reason if not. Either way, how much is not stored yet.

    Snapshots that wait for an object store do not make a node unready; a store that is down does, within seconds.
    """
    overview = await context.house.overview()
    try:
        await context.house.ready()
    except HatchError as error:
        return problems.answer(error, ready_answer(overview, ready=False).model_dump())
    return ready_answer(overview, ready=True)


@router.get("/metrics", response_class=Response, responses={200: _TEXT})
async def metrics(context: Ctx, request: Request) -> Response:
    """Everything that is measured, for Prometheus."""
    return _exposition(context.registry, request)


def _exposition(registry: CollectorRegistry, request: Request) -> Response:
    encoder, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encoder(registry), headers={"Content-Type": content_type})
