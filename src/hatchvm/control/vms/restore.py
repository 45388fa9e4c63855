"""`POST /vms/{id}/restore`: wake a sleeping VM, or bring any resting one back to one of its snapshots.

Or to the disk of one: the guest boots from it and its memory is forgotten, because no host can resume it any more.
"""

from __future__ import annotations

import asyncio
from typing import Final

from hatchvm.base.errors import Conflict, HatchError, NotFound, Unavailable, Unsupported
from hatchvm.control.context import Context
from hatchvm.control.owner import Owner
from hatchvm.control.vms import upload
from hatchvm.control.vms.wake import need
from hatchvm.domain.lifecycle import Event, State, advance
from hatchvm.domain.snapshot import Snapshot, SnapshotStatus
from hatchvm.domain.vm import VM
from hatchvm.ports.house import Woken

_ASLEEP: Final = frozenset({State.SUSPENDING, State.SNAPSHOTTED, State.RESTORING})


async def restore(ctx: Context, vm_id: str, snapshot_id: str | None, *, disk: bool = False) -> VM:
    """See `ports.house.VMs.restore`. The latest state of a sleeping VM is a wake, shared with whoever else asks."""
    owner = ctx.owners.get(vm_id)
    if disk:
        return await owner.do(lambda: _from_disk(ctx, owner, snapshot_id), name="restore disk")
    # A stored snapshot that was asked for by name is fetched, whatever this host has: an earlier restore may have
    # replaced the VM's own memory by another snapshot's.
    if (snapshot_id is None or _is_pending(owner, snapshot_id)) and owner.vm.state in _ASLEEP:
        owner.activity.want()
        await _wake(ctx, owner)
        return owner.vm
    return await owner.do(lambda: _from_snapshot(ctx, owner, snapshot_id), name="restore")


async def _wake(ctx: Context, owner: Owner) -> None:
    """Unlike a request through the proxy, this one is told why it failed."""
    try:
        await need(ctx, owner.vm.id, reason="api", timeout_s=ctx.settings.wake_timeout_s)
    except Unavailable as error:
        if isinstance(error.__cause__, Unsupported):
            raise error.__cause__ from None  # later is no better
        why = owner.vm.state_reason or error.message
        raise Unavailable(why, detail=error.detail, retry_after_s=error.retry_after_s) from error


async def _from_snapshot(ctx: Context, owner: Owner, snapshot_id: str | None) -> VM:
    advance(owner.vm.state, Event.RESTORE)
    source = await _source(ctx, owner.vm.id, snapshot_id)
    return await _bring_back(ctx, owner, source, disk=False)


async def _from_disk(ctx: Context, owner: Owner, snapshot_id: str | None) -> VM:
    """The newest disk is the one here if the VM sleeps on this host, be it stored yet or not."""
    advance(owner.vm.state, Event.RESTORE)
    here = snapshot_id is None and (owner.pending is not None or await ctx.node.saved(owner.vm.id))
    if here or _is_pending(owner, snapshot_id):
        return await _bring_back(ctx, owner, None, disk=True)
    return await _bring_back(ctx, owner, await _source(ctx, owner.vm.id, snapshot_id), disk=True)


async def _bring_back(ctx: Context, owner: Owner, source: Snapshot | None, *, disk: bool) -> VM:
    """Fetch `source`, if there is one, and run it."""
    was_asleep = owner.vm.state is State.SNAPSHOTTED
    began, put_right = ctx.clock.monotonic(), None
    owner.activity.touch()
    await owner.move(Event.RESTORE)
    pending = await upload.stop(owner)
    touched = False  # whether what the VM had on this host may be gone
    try:
        image = await ctx.image_of(owner.vm)
        deadline = asyncio.get_running_loop().time() + ctx.settings.wake_timeout_s
        if source is not None:
            async with asyncio.timeout_at(deadline):
                if disk:
                    await ctx.node.fetch_disk(owner.vm, image, source)
                else:  # not lazily: if it fails, the VM must still have what it had
                    await ctx.node.fetch(owner.vm, image, source, lazily=False)
        touched = True
        if disk:
            await ctx.node.boot(owner.vm, image)
        else:
            async with asyncio.timeout_at(deadline):
                ports = {route.target_port for route in ctx.routes.of_vm(owner.vm.id)}
                put_right = await ctx.node.wake(owner.vm, image, ports)
    except (HatchError, TimeoutError) as error:
        why = str(error) or f"it took longer than {ctx.settings.wake_timeout_s:g} s"
        kept = not touched or (disk and await ctx.node.saved(owner.vm.id))
        await _failed(ctx, owner, why, pending, kept=kept, asleep=was_asleep if kept else not disk)
        if isinstance(error, HatchError):
            raise
        raise Unavailable(f"restore failed: {why}") from error
    owner.pending = None
    upload.remove_later(ctx, pending)
    owner.retry_at = 0.0
    if put_right is not None:
        seconds = ctx.clock.monotonic() - began
        owner.last_wake = Woken(at=ctx.clock.now(), reason="api", by="", seconds=seconds, put_right=put_right)
    started_at = ctx.clock.now() if disk else owner.vm.started_at
    return await owner.settle(Event.RESTORED, wake_failures=0, started_at=started_at, also=upload.forget(pending))


async def _failed(ctx: Context, owner: Owner, why: str, pending: Snapshot | None, *, kept: bool, asleep: bool) -> None:
    """`kept`: all is as before, and `pending` goes on being stored; else its content was replaced or forgotten."""
    gone = None if kept else pending
    after = Event.ABORTED if asleep else Event.HALTED
    await owner.settle(after, reason=f"restore failed: {why}", also=upload.forget(gone))
    owner.pending = None
    upload.remove_later(ctx, gone)
    if kept and pending is not None:
        upload.begin(ctx, owner, pending)


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


def _is_pending(owner: Owner, snapshot_id: str | None) -> bool:
    return owner.pending is not None and owner.pending.id == snapshot_id
