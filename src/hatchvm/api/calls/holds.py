"""`/vms/{id}/holds` and `/vms/{id}/activity`: what keeps a VM awake."""

from __future__ import annotations

from fastapi import APIRouter

from hatchvm.api.answers import Deleted
from hatchvm.api.bodies import HoldCreate, HoldRenew
from hatchvm.api.context import Ctx
from hatchvm.api.guard import KeyRoute
from hatchvm.api.params import HoldId, VMId
from hatchvm.api.use import ActivityAnswer, LeaseAnswer, activity_answer, lease_answer
from hatchvm.base.units import parse_duration

router = APIRouter(prefix="/vms/{vm_id}", tags=["Holds"], route_class=KeyRoute)


@router.post("/holds", status_code=201)
async def create_hold(context: Ctx, vm_id: VMId, body: HoldCreate) -> LeaseAnswer:
    """Keep a running VM awake for a while, whether or not somebody is connected. It does not wake one that sleeps.

    `POST /vms/{vm_id}/snapshot` still suspends it. A VM can have 100 holds at a time.
    """
    reason = body.given().get("reason", "")
    return lease_answer(await context.house.holds.create(vm_id, ttl_s=parse_duration(body.ttl), reason=reason))


@router.get("/holds")
async def list_holds(context: Ctx, vm_id: VMId) -> list[LeaseAnswer]:
    """The holds of a VM that have not ended, newest first."""
    return [lease_answer(lease) for lease in await context.house.holds.list(vm_id)]


@router.patch("/holds/{hold_id}")
async def renew_hold(context: Ctx, vm_id: VMId, hold_id: HoldId, body: HoldRenew) -> LeaseAnswer:
    """Let a hold last that long from now. One that has ended is gone."""
    return lease_answer(await context.house.holds.renew(vm_id, hold_id, ttl_s=parse_duration(body.ttl)))


@router.delete("/holds/{hold_id}")
async def release_hold(context: Ctx, vm_id: VMId, hold_id: HoldId) -> Deleted:
    """End a hold. The VM's idle time begins now."""
    await context.house.holds.release(vm_id, hold_id)
    return Deleted()


@router.get("/activity")
async def vm_activity(context: Ctx, vm_id: VMId) -> ActivityAnswer:
    """Why a VM is awake, why it woke, and when it will sleep."""
    return activity_answer(await context.house.holds.use(vm_id))
