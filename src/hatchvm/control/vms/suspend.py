"""Suspending a running VM: by the API, or because it is idle."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime

import structlog

from hatchvm.base import ids
from hatchvm.base.errors import Conflict, HatchError, Unavailable
from hatchvm.control.context import Context
from hatchvm.control.owner import Owner
from hatchvm.control.vms import upload
from hatchvm.domain.lifecycle import Event, advance
from hatchvm.domain.snapshot import Snapshot, SnapshotStatus
from hatchvm.domain.vm import VM
from hatchvm.ports.store import Tx
from hatchvm.snapshots.layout import SnapshotKeys
from hatchvm.telemetry import logs, metrics

_log = structlog.get_logger()


async def snapshot(ctx: Context, vm_id: str) -> Snapshot:
    """Suspend, and return when the snapshot is committed to the object store."""
    owner = ctx.owners.get(vm_id)
    first = await owner.do(lambda: _explicit(ctx, owner), name="snapshot")
    return await asyncio.shield(first)


async def suspend_idle(ctx: Context, owner: Owner, arrivals: int) -> None:
    """Suspend because nobody uses it. Raises Conflict if somebody does by now; the upload goes on by itself.

    `arrivals`: how many had come when it was found idle.
    """

    async def verb() -> None:
        if owner.activity.holds or owner.activity.arrivals != arrivals:
            raise Conflict("the vm is in use")
        await suspend(ctx, owner)

    await owner.do(verb, name="idle suspend")


async def _explicit(ctx: Context, owner: Owner) -> asyncio.Future[Snapshot]:
    """Open requests get a moment to end; whoever comes after that takes the suspend back."""
    advance(owner.vm.state, Event.SUSPEND)
    await owner.activity.drained(ctx.settings.drain_s)
    return await suspend(ctx, owner)


async def suspend(ctx: Context, owner: Owner) -> asyncio.Future[Snapshot]:
    """In the owner's turn. The future of the upload. On any failure the VM runs on, with the reason recorded."""
    if not ctx.settings.snapshots_configured:
        raise Unavailable("snapshot storage not configured")
    arrivals = owner.activity.arrivals
    taken = _row(owner.vm, ctx.clock.now())

    async def forget(tx: Tx) -> None:
        await tx.snapshots.delete(taken.id)

    await owner.move(Event.SUSPEND, also=lambda tx: tx.snapshots.insert(taken))
    try:
        image = await ctx.image_of(owner.vm)
        done = await ctx.node.suspend(owner.vm, image, lambda: owner.activity.arrivals != arrivals)
    except HatchError as error:
        await owner.settle(Event.RESUMED, reason=f"snapshot failed: {error}", also=forget)
        metrics.SUSPENDS.labels("failed").inc()
        raise
    if done is None:
        await owner.settle(Event.RESUMED, also=forget)
        metrics.SUSPENDS.labels("taken back").inc()
        _log.info(logs.SUSPEND_TAKEN_BACK, vm=owner.vm.id)
        raise Conflict("a request came while the vm was being snapshotted; it runs on, try again later")
    await owner.settle(Event.SUSPENDED)
    metrics.SUSPENDS.labels("ok").inc()
    metrics.PAUSE_SECONDS.observe(done.pause_s)
    _log.info(logs.SNAPSHOT_CREATED, vm=owner.vm.id, snapshot=taken.id, pause_ms=round(done.pause_s * 1000, 1))
    return upload.begin(ctx, owner, taken)


def _row(vm: VM, now: datetime) -> Snapshot:
    """A pending snapshot of a VM that was just suspended. `vm_config` is what a copy of it needs."""
    snapshot_id = ids.new(ids.SNAPSHOT)
    keys = SnapshotKeys(vm.id, snapshot_id)
    spec = vm.spec
    config = {
        "image_id": spec.image_id,
        "vcpu_count": spec.vcpu_count,
        "mem_mib": spec.mem_mib,
        "boot_args": spec.boot_args,
        "enable_network": spec.enable_network,
        "guest_ip": vm.guest_ip,
        "guest_mac": vm.guest_mac,
        "bridged": vm.tap_name is not None,
    }
    return Snapshot(
        id=snapshot_id,
        vm_id=vm.id,
        status=SnapshotStatus.PENDING,
        state_key=keys.state,
        memory_key=keys.memory,
        disk_key=keys.disk,
        vm_config=json.dumps(config, sort_keys=True),
        created_at=now,
    )
