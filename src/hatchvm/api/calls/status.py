"""`/status`: what the operator of a node wants to know at a glance."""

from __future__ import annotations

from fastapi import APIRouter

from hatchvm.api.answers import StatusAnswer, status_answer
from hatchvm.api.context import Ctx
from hatchvm.api.guard import KeyRoute
from hatchvm.base.errors import HatchError

router = APIRouter(tags=["Status"], route_class=KeyRoute)


@router.get("/status")
async def status(context: Ctx) -> StatusAnswer:
    """What `/readyz` says, and more: VMs by state, every snapshot that is not stored yet, and why."""
    overview = await context.house.overview()
    try:
        await context.house.ready()
    except HatchError as error:
        return status_answer(overview, reason=error.message)
    return status_answer(overview, reason="")
