"""What a starting daemon does with the rows of the last one: take back, finish or undo, sweep."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import structlog

from hatchvm.base.errors import HatchError
from hatchvm.control.context import Context
from hatchvm.control.owner import Owner
from hatchvm.control.vms import delete, upload
from hatchvm.domain.lifecycle import Found, State, recovered
from hatchvm.domain.snapshot import Snapshot, SnapshotStatus, kept
from hatchvm.domain.vm import VM
from hatchvm.telemetry import logs

_log = structlog.get_logger()


async def reconcile(ctx: Context) -> None:
    """After this every row tells the truth, every process has a row, and what was being uploaded is again."""
    async with ctx.store.begin() as tx:
        vms = [vm for vm in await tx.vms.list() if vm.node_id == ctx.node.id]
        ctx.routes.load(await tx.routes.list())
        leases = await tx.leases.list()
    swept = await ctx.node.sweep(vms)
    if swept:
        _log.info(logs.SWEPT, vms=swept)
    for vm in vms:
        owner = ctx.own(vm)
        await owner.do(partial(_recover, ctx, owner), name="recover")
    for lease in leases:
        if (holder := ctx.owners.find(lease.vm_id)) is not None:
            holder.activity.leases[lease.id] = lease


async def _recover(ctx: Context, owner: Owner) -> None:
    vm = owner.vm
    found = await ctx.node.adopt(vm, await ctx.image_of(vm))
    newest = await _newest(ctx, vm)
    stored = newest is not None and newest.status is SnapshotStatus.COMMITTED
    state, reason = recovered(vm.state, found, stored=stored)
    if state is not vm.state:
        await owner.recover(state, reason=reason)
    if found is Found.RUNNING:
        owner.since = float("-inf")  # it has been up for long: its ports answer or they do not
        _log.info(logs.ADOPTED, vm=vm.id)
    if state is State.DELETING:
        owner.start(lambda: delete.destroy(ctx, owner), name="delete")
    elif newest is not None and newest.status is SnapshotStatus.PENDING:
        await _resume_upload(ctx, owner, newest, possible=found is Found.SAVED and state is State.SNAPSHOTTED)


async def _newest(ctx: Context, vm: VM) -> Snapshot | None:
    """The newest snapshot. An older one that is still not committed will never be: its memory has moved on."""
    async with ctx.store.begin() as tx:
        rows = await tx.snapshots.list_for_vm(vm.id)
    for row in rows:
        if row.status is SnapshotStatus.DELETING:
            upload.remove_later(ctx, row)
    rows = kept(rows)
    settled = [await _settle_pending(ctx, row) if row.status is SnapshotStatus.PENDING else row for row in rows]
    for older in settled[1:]:
        if older.status is SnapshotStatus.PENDING:
            await _drop(ctx, older)
    return settled[0] if settled else None


async def _settle_pending(ctx: Context, snapshot: Snapshot) -> Snapshot:
    """A snapshot whose manifest was written before the daemon died is committed."""
    try:
        sizes = await ctx.node.committed(snapshot)
    except HatchError:  # the store is down: the upload finds out later
        return snapshot
    return snapshot if sizes is None else await upload.record(ctx, snapshot, sizes)


async def _resume_upload(ctx: Context, owner: Owner, snapshot: Snapshot, *, possible: bool) -> None:
    if possible:
        upload.begin(ctx, owner, snapshot)
        return
    await _drop(ctx, snapshot)


async def _drop(ctx: Context, snapshot: Snapshot) -> None:
    async with ctx.store.begin() as tx:
        await tx.snapshots.update(replace(snapshot, status=SnapshotStatus.DELETING))
    upload.remove_later(ctx, snapshot)
