"""`POST /vms/{id}/restore`: wake a sleeping VM, or bring any resting one back to one of its snapshots."""

from __future__ import annotations

import asyncio
from typing import Final

from hatchvm.base.errors import Conflict, HatchError, NotFound, Unavailable
from hatchvm.control.context import Context
from hatchvm.control.owner import Owner
from hatchvm.control.vms import upload
from hatchvm.control.vms.wake import need
from hatchvm.domain.lifecycle import Event, State, advance
from hatchvm.domain.snapshot import Snapshot, SnapshotStatus
from hatchvm.domain.vm import VM

_ASLEEP: Final = frozenset({State.SUSPENDING, State.SNAPSHOTTED, State.RESTORING})


async def restore(ctx: Context, vm_id: str, snapshot_id: str | None) -> VM:
    """See `ports.house.VMs.restore`. The latest state of a sleeping VM is a wake, shared with whoever else asks."""
    owner = ctx.owners.get(vm_id)
    # A stored snapshot that was asked for by name is fetched, whatever this host has: an earlier restore may have
    # replaced the VM's own memory by another snapshot's.
    being_stored = owner.pending is not None and owner.pending.id == snapshot_id
    if (snapshot_id is None or being_stored) and owner.vm.state in _ASLEEP:
        owner.activity.want()
        await need(ctx, vm_id, reason="api", timeout_s=ctx.settings.wake_timeout_s)
        return owner.vm
    return await owner.do(lambda: _from_snapshot(ctx, owner, snapshot_id), name="restore")


async def _from_snapshot(ctx: Context, owner: Owner, snapshot_id: str | None) -> VM:
    advance(owner.vm.state, Event.RESTORE)
    source = await _source(ctx, owner.vm.id, snapshot_id)
    was_asleep = owner.vm.state is State.SNAPSHOTTED
    owner.activity.touch()
    await owner.move(Event.RESTORE)
    pending = await upload.stop(owner)
    fetched = False
    try:
        async with asyncio.timeout(ctx.settings.wake_timeout_s):
            image = await ctx.image_of(owner.vm)
            await ctx.node.fetch(owner.vm, image, source)
            fetched = True
            await ctx.node.wake(owner.vm, image, {route.target_port for route in ctx.routes.of_vm(owner.vm.id)})
    except (HatchError, TimeoutError) as error:
        why = str(error) or f"it took longer than {ctx.settings.wake_timeout_s:g} s"
        gone = upload.forget(pending) if fetched else None  # its content was replaced by what was fetched
        after = Event.ABORTED if was_asleep or fetched else Event.HALTED
        await owner.settle(after, reason=f"restore failed: {why}", also=gone)
        owner.pending = None
        if pending is not None and not fetched:
            upload.begin(ctx, owner, pending)
        if isinstance(error, HatchError):
            raise
        raise Unavailable(f"restore failed: {why}") from error
    owner.pending = None
    upload.clean_up(ctx, pending)
    owner.retry_at = 0.0
    return await owner.settle(Event.RESTORED, wake_failures=0, also=upload.forget(pending))


async def _source(ctx: Context, vm_id: str, snapshot_id: str | None) -> Snapshot:
    async with ctx.store.begin() as tx:
        if snapshot_id is None:
            rows = await tx.snapshots.list_for_vm(vm_id)
            committed = [row for row in rows if row.status is SnapshotStatus.COMMITTED]
            if not committed:
                raise Conflict("the vm has no snapshot to restore; start it to boot from its disk")
            return committed[0]
        source = await tx.snapshots.get(snapshot_id)
    if source.vm_id != vm_id:
        raise NotFound("snapshot not found")
    if source.status is not SnapshotStatus.COMMITTED:
        raise Conflict("the snapshot is not stored yet; try again when its status is committed")
    return source
