"""`/snapshots/{id}`: one snapshot."""

from __future__ import annotations

from fastapi import APIRouter

from hatchvm.api.answers import Deleted, SnapshotAnswer, snapshot_answer
from hatchvm.api.context import Ctx
from hatchvm.api.guard import KeyRoute
from hatchvm.api.params import SnapshotId

router = APIRouter(prefix="/snapshots", tags=["Snapshots"], route_class=KeyRoute)


@router.get("/{snapshot_id}")
async def get_snapshot(context: Ctx, snapshot_id: SnapshotId) -> SnapshotAnswer:
    """One snapshot."""
    return snapshot_answer(await context.house.snapshots.get(snapshot_id))


@router.delete("/{snapshot_id}")
async def delete_snapshot(context: Ctx, snapshot_id: SnapshotId) -> Deleted:
    """Delete a snapshot and the data that no other snapshot shares."""
    await context.house.snapshots.delete(snapshot_id)
    return Deleted()
