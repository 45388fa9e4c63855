"""The REST API: a thin door. It checks what comes in, asks the house, and says what comes out."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from prometheus_client import REGISTRY, CollectorRegistry

from hatchvm.api import problems
from hatchvm.api.boundary import Boundary
from hatchvm.api.calls import (
    events,
    health,
    holds,
    images,
    keys,
    routes,
    snapshots,
    ssh_keys,
    status,
    store,
    templates,
    tls,
    vms,
)
from hatchvm.api.context import Context
from hatchvm.api.docs import render
from hatchvm.api.openapi import describe
from hatchvm.ports.house import House
from hatchvm.ports.identity import Verifier

_PARTS: Final = (vms, routes, holds, snapshots, store, images, templates, keys, ssh_keys, events, status, health, tls)


def create_app(
    house: House,
    verifier: Verifier,
    *,
    base_url_for: Callable[[str], str],
    socket_path_for: Callable[[str], str],
    version: str,
    registry: CollectorRegistry = REGISTRY,
) -> FastAPI:
    """The API over `house`.

    `base_url_for`: subdomain -> the URL the proxy serves it under. `socket_path_for`: VM id -> its VMM's socket.
    `registry`: what `/metrics` shows.
    """
    app = FastAPI(
        version=version,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=_operation_id,
        # Its spans would carry request bodies, and those carry user_data.
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    app.state.context = Context(
        house=house,
        verifier=verifier,
        base_url_for=base_url_for,
        socket_path_for=socket_path_for,
        registry=registry,
    )
    problems.install(app)
    app.add_middleware(Boundary)
    for part in _PARTS:
        app.include_router(part.router)
    _document(app)
    return app


def _document(app: FastAPI) -> None:
    description = cache(lambda: describe(app))
    page = cache(lambda: render(description()))

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> dict[str, Any]:
        return description()

    @app.get("/docs", include_in_schema=False, response_class=HTMLResponse)
    async def docs() -> str:
        return page()


def _operation_id(route: APIRoute) -> str:
    return route.name
