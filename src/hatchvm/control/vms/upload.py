"""Bringing a suspended VM's snapshot to the object store, in the background, for as long as the VM sleeps.

A wake never waits for an upload: it stops it, and the snapshot, which nobody can restore any more, is forgotten.
A store that is down costs nothing but retries with a growing delay: the VM sleeps and wakes from its local copy.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

import structlog

from hatchvm.base import tasks
from hatchvm.base.errors import Conflict, Corrupt, HatchError, NotFound, Unavailable
from hatchvm.control.context import Context
from hatchvm.control.owner import Owner
from hatchvm.domain import backoff
from hatchvm.domain.snapshot import Snapshot, SnapshotStatus
from hatchvm.domain.vm import VM
from hatchvm.ports.house import PendingUpload
from hatchvm.ports.node import Sizes
from hatchvm.ports.store import Tx
from hatchvm.telemetry import logs, metrics

_log = structlog.get_logger()

#: So many other VMs' snapshots are looked at for blocks that need not be stored again.
_OTHERS: Final = 32


def begin(ctx: Context, owner: Owner, snapshot: Snapshot) -> asyncio.Future[Snapshot]:
    """Start uploading. The future resolves at the first outcome: the committed snapshot, or why it is not."""
    first: asyncio.Future[Snapshot] = asyncio.get_running_loop().create_future()
    first.add_done_callback(lambda future: future.cancelled() or future.exception())
    owner.pending = snapshot
    owner.upload = tasks.spawn(_upload(ctx, owner, snapshot, first), name=f"upload {snapshot.id}")
    owner.upload.add_done_callback(lambda _: _cut_short(first))
    return first


def pending(ctx: Context) -> list[PendingUpload]:
    """Every snapshot that is not stored yet, the oldest first."""
    found = [_describe(ctx, owner, owner.pending) for owner in ctx.owners if owner.pending is not None]
    return sorted(found, key=lambda one: one.since)


def _describe(ctx: Context, owner: Owner, snapshot: Snapshot) -> PendingUpload:
    alive = owner.upload is not None and not owner.upload.done()
    return PendingUpload(
        vm_id=snapshot.vm_id,
        snapshot_id=snapshot.id,
        since=snapshot.created_at,
        waited_s=(ctx.clock.now() - snapshot.created_at).total_seconds(),
        error=snapshot.error,
        uploading=alive and owner.upload_retry_at is None,
        retry_at=owner.upload_retry_at,
    )


async def stop(owner: Owner) -> Snapshot | None:
    """Stop the upload, if one is under way; the snapshot that stayed uncommitted, or None."""
    task, owner.upload = owner.upload, None
    if task is not None:
        await tasks.cancel_and_wait(task)
    return owner.pending


def forget(snapshot: Snapshot | None) -> Callable[[Tx], Awaitable[None]] | None:
    """What says in somebody's unit of work that nobody wants an uncommitted snapshot any more; then `remove_later`.

    Its row must outlive its manifest, and it has one if its commit got no answer.
    """
    if snapshot is None:
        return None

    async def mark(tx: Tx) -> None:
        with contextlib.suppress(NotFound):  # written late, because the rows could not be: it is gone already
            await tx.snapshots.update(replace(snapshot, status=SnapshotStatus.DELETING))

    return mark


def remove_later(ctx: Context, snapshot: Snapshot | None) -> None:
    """`remove` it in the background; if that fails, the next upload's end or the next start tries again."""
    if snapshot is not None:
        tasks.supervise(_remove_or_warn(ctx, snapshot), name=f"remove {snapshot.id}")


async def _remove_or_warn(ctx: Context, snapshot: Snapshot) -> None:
    try:
        await remove(ctx, snapshot)
    except HatchError as error:
        _log.warning(logs.SNAPSHOT_NOT_REMOVED, snapshot=snapshot.id, error=str(error), detail=error.detail)


async def _upload(ctx: Context, owner: Owner, snapshot: Snapshot, first: asyncio.Future[Snapshot]) -> None:
    failures = 0
    while True:
        owner.upload_retry_at = None
        try:
            bases = await _bases(ctx, owner.vm)
            parent_id = bases[0].id if bases and bases[0].vm_id == snapshot.vm_id else None
            sizes = await _store(ctx, owner, snapshot, bases)
            stored = replace(snapshot, parent_id=parent_id)
            await tasks.finish(_committed(ctx, owner, stored, sizes, first), name=f"commit {snapshot.id}")
            return
        except HatchError as error:
            failures += 1
            owner.pending = replace(snapshot, error=str(error))
            await _failed(ctx, owner.pending, error, failures)
            if not first.done():
                first.set_exception(_kept(error))
            if isinstance(error, Corrupt):
                return  # what is to be stored is gone: no retry brings it back
        delay_s = backoff.delay_s(failures)
        owner.upload_retry_at = ctx.clock.now() + timedelta(seconds=delay_s)
        await asyncio.sleep(delay_s)


async def _store(ctx: Context, owner: Owner, snapshot: Snapshot, bases: Sequence[Snapshot]) -> Sizes:
    try:
        return await ctx.node.upload(owner.vm, snapshot, bases)
    except Conflict:
        try:
            sizes = await ctx.node.committed(snapshot)
        except Corrupt as error:  # in the store; what is to be stored is not
            raise Unavailable(error.message, detail=error.detail) from error
        if sizes is None:
            raise
        return sizes  # an earlier attempt got that far, and only its row could not be written


async def _bases(ctx: Context, vm: VM) -> list[Snapshot]:
    """The VM's own committed snapshots, and the newest one of every other VM of its image, up to a limit."""
    async with ctx.store.begin() as tx:
        own = await tx.snapshots.list_for_vm(vm.id)
        others = await tx.snapshots.newest_of_image(vm.spec.image_id, limit=_OTHERS)
    mine = [row for row in own if row.status is SnapshotStatus.COMMITTED]
    return [*mine, *(row for row in others if row.vm_id != vm.id)]


def _cut_short(first: asyncio.Future[Snapshot]) -> None:
    if not first.done():
        sentence = "a request woke the vm before its snapshot was stored; it runs on, nothing is lost"
        first.set_exception(Conflict(sentence))


async def record(ctx: Context, snapshot: Snapshot, sizes: Sizes) -> Snapshot:
    """Write the row of a snapshot whose manifest is in the object store."""
    stored = replace(
        snapshot,
        status=SnapshotStatus.COMMITTED,
        size_bytes=sizes.size_bytes,
        stored_bytes=sizes.stored_bytes,
        error="",
    )
    async with ctx.store.begin() as tx:
        await tx.snapshots.update(stored)
    return stored


async def _committed(
    ctx: Context, owner: Owner, snapshot: Snapshot, sizes: Sizes, first: asyncio.Future[Snapshot]
) -> None:
    stored = await record(ctx, snapshot, sizes)
    owner.pending = None
    metrics.UPLOADS.labels("ok").inc()
    metrics.STORED_BYTES.inc(sizes.stored_bytes)
    _log.info(logs.SNAPSHOT_STORED, vm=owner.vm.id, snapshot=stored.id, stored_bytes=sizes.stored_bytes)
    if not first.done():
        first.set_result(stored)
    await _retain(ctx, owner)


async def _retain(ctx: Context, owner: Owner) -> None:
    """Keep the newest committed snapshots; a failure to remove an old one is retried after the next upload."""
    try:
        async with ctx.store.begin() as tx:
            rows = await tx.snapshots.list_for_vm(owner.vm.id)
        committed = [row for row in rows if row.status is SnapshotStatus.COMMITTED]
        deleting = [row for row in rows if row.status is SnapshotStatus.DELETING]
        for old in [*deleting, *committed[ctx.settings.snapshot_keep :]]:
            await remove(ctx, old)
    except HatchError as error:
        _log.warning(logs.SNAPSHOT_NOT_REMOVED, vm=owner.vm.id, error=str(error), detail=error.detail)


async def remove(ctx: Context, snapshot: Snapshot) -> None:
    """Delete a snapshot. What is begun is finished, if not now then later. May be repeated."""
    async with ctx.store.begin() as tx:
        with contextlib.suppress(NotFound):
            await tx.snapshots.update(replace(snapshot, status=SnapshotStatus.DELETING))
    await ctx.node.discard(snapshot)
    async with ctx.store.begin() as tx:
        await tx.snapshots.delete(snapshot.id)


async def _failed(ctx: Context, snapshot: Snapshot, error: HatchError, failures: int) -> None:
    metrics.UPLOADS.labels("failed").inc()
    _log.error(
        logs.SNAPSHOT_UPLOAD_FAILED,
        vm=snapshot.vm_id,
        snapshot=snapshot.id,
        error=str(error),
        detail=error.detail,
        failures=failures,
    )
    try:
        async with ctx.store.begin() as tx:
            await tx.snapshots.update(snapshot)
    except HatchError as behind:
        _log.error(logs.STORE_BEHIND, vm=snapshot.vm_id, error=str(behind), detail=behind.detail)


def _kept(error: HatchError) -> HatchError:
    if isinstance(error, Corrupt):
        return error
    return Unavailable(
        f"the vm is suspended and kept on this host, but storing its snapshot failed and will be retried: {error}",
        detail=error.detail,
    )
