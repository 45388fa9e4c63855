"""`/store`: the object store as a whole."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter

from hatchvm.api.answers import AuditAnswer, CollectedAnswer, audit_answer, collected_answer
from hatchvm.api.bodies import StoreGC
from hatchvm.api.context import Ctx
from hatchvm.api.guard import KeyRoute
from hatchvm.base.units import parse_duration

router = APIRouter(prefix="/store", tags=["Store"], route_class=KeyRoute)

_USUAL: Final = StoreGC()


@router.post("/gc")
async def collect(context: Ctx, body: StoreGC = _USUAL) -> CollectedAnswer:
    """Remove from the object store what no snapshot has needed for a while. The daemon does so by itself, too.

    If a manifest cannot be read, nothing is removed, and the sentence names the snapshot.
    """
    grace = body.given().get("grace")
    return collected_answer(await context.house.storage.collect(None if grace is None else parse_duration(grace)))


@router.get("/audit")
async def audit(context: Ctx) -> AuditAnswer:
    """What is stored and what is wrong with it, told from lists and manifests: no guest's data is read."""
    return audit_answer(await context.house.storage.audit())
