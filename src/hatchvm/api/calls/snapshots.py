"""`/snapshots/{id}`: one snapshot."""

from __future__ import annotations

from fastapi import APIRouter, Response

from hatchvm.api import problems
from hatchvm.api.answers import Deleted, SnapshotAnswer, Verified, snapshot_answer
from hatchvm.api.context import Ctx
from hatchvm.api.guard import KeyRoute
from hatchvm.api.params import SnapshotId
from hatchvm.base.errors import Corrupt

router = APIRouter(prefix="/snapshots", tags=["Snapshots"], route_class=KeyRoute)


@router.get("/{snapshot_id}")
async def get_snapshot(context: Ctx, snapshot_id: SnapshotId) -> SnapshotAnswer:
    """One snapshot."""
    return snapshot_answer(await context.house.snapshots.get(snapshot_id))


@router.delete("/{snapshot_id}")
async def delete_snapshot(context: Ctx, snapshot_id: SnapshotId) -> Deleted:
    """Delete a snapshot. Stored data that only it needs goes after a grace period, or with `POST /store/gc`."""
    await context.house.snapshots.delete(snapshot_id)
    return Deleted()


@router.post("/{snapshot_id}/verify", response_model=Verified)
async def verify_snapshot(context: Ctx, snapshot_id: SnapshotId) -> Verified | Response:
    """Read everything that is stored of a snapshot, which takes as long as there is much of it.

    If any of it is damaged or missing: 503 with `status` `damaged` and a sentence that names the object.
    """
    try:
        return Verified(bytes=await context.house.snapshots.verify(snapshot_id))
    except Corrupt as error:
        return problems.answer(error, {"status": "damaged"})
