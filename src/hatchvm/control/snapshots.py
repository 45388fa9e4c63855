"""Use cases over single snapshots: see `ports.house.Snapshots`."""

from __future__ import annotations

from hatchvm.base.errors import Conflict
from hatchvm.control.context import Context
from hatchvm.domain.snapshot import Snapshot, SnapshotStatus


class SnapshotCases:
    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    async def get(self, snapshot_id: str) -> Snapshot:
        async with self._ctx.store.begin() as tx:
            return await tx.snapshots.get(snapshot_id)

    async def delete(self, snapshot_id: str) -> None:
        """In the VM's turn. A sleeping VM keeps its own memory on this host: any stored snapshot may go."""
        snapshot = await self.get(snapshot_id)
        owner = self._ctx.owners.get(snapshot.vm_id)

        async def verb() -> None:
            current = await self.get(snapshot_id)
            if current.status is not SnapshotStatus.COMMITTED:
                raise Conflict("the snapshot is being stored; try again when its status is committed")
            await self._ctx.node.discard(current)
            async with self._ctx.store.begin() as tx:
                await tx.snapshots.delete(snapshot_id)

        await owner.do(verb, name="delete snapshot")
