"""Use cases over single snapshots: see `ports.house.Snapshots`."""

from __future__ import annotations

from hatchvm.base.errors import Conflict, Corrupt, NotFound
from hatchvm.control.context import Context
from hatchvm.control.vms import upload
from hatchvm.control.vms.wake import newest_snapshot
from hatchvm.domain.lifecycle import State
from hatchvm.domain.snapshot import Snapshot, SnapshotStatus


class SnapshotCases:
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    async def get(self, snapshot_id: str) -> Snapshot:
        async with self._ctx.store.begin() as tx:
            return await tx.snapshots.get(snapshot_id)

    async def delete(self, snapshot_id: str) -> None:
        """In the VM's turn. What a sleeping VM would be woken from, were this host's copy lost, is not deleted."""
        snapshot = await self.get(snapshot_id)
        owner = self._ctx.owners.get(snapshot.vm_id)

        async def verb() -> None:
            current = await self.get(snapshot_id)
            if current.status is SnapshotStatus.PENDING:
                raise Conflict("the snapshot is being stored; try again when its status is committed")
            if owner.vm.state is State.SNAPSHOTTED and await self._is_newest(current):
                raise Conflict("the vm sleeps on this snapshot; wake the vm first, or delete it")
            await upload.remove(self._ctx, current)

        await owner.do(verb, name="delete snapshot")

    async def verify(self, snapshot_id: str) -> int:
        """In nobody's turn, because it takes as long as it takes. One that is deleted meanwhile is not damaged."""
        snapshot = await self.get(snapshot_id)
        if snapshot.status is not SnapshotStatus.COMMITTED:
            raise Conflict("the snapshot is not stored yet; try again when its status is committed")
        try:
            return await self._ctx.node.verify(snapshot)
        except (Corrupt, NotFound) as error:
            if (await self.get(snapshot_id)).status is SnapshotStatus.DELETING:
                raise NotFound("snapshot not found") from error
            if isinstance(error, Corrupt):
                raise
            raise Corrupt(f"the snapshot is damaged: {error}") from error

    async def _is_newest(self, snapshot: Snapshot) -> bool:
        newest = await newest_snapshot(self._ctx, snapshot.vm_id)
        return newest is not None and newest.id == snapshot.id
