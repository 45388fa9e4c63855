"""`/tls/ask`: what a front with certificates asks before it gets one, Caddy's on-demand TLS for one. Needs no key."""

from __future__ import annotations

from fastapi import APIRouter

from hatchvm.api.answers import Served
from hatchvm.api.context import Ctx
from hatchvm.base.errors import NotFound

router = APIRouter(tags=["TLS"])


@router.get("/tls/ask")
async def ask_tls(context: Ctx, domain: str) -> Served:
    """Whether a host name is that of a route, or a verified custom domain. Costs a look at memory."""
    if not context.house.routes.serves(domain):
        raise NotFound("no route has this name")
    return Served()
