"""Waking, and the activator: the one place that turns "I need this VM" into a running VM.

HTTP, SSH, the API and a schedule all come through `need`. However many ask, one wake runs and all share its outcome; it
belongs to the VM, so nobody's hang-up or timeout stops it. A wake that fails leaves the VM asleep and untouched, and is
not tried again before a growing delay.
"""

from __future__ import annotations

import asyncio
import math

import structlog

from hatchvm.base.errors import Corrupt, HatchError, NotFound, Unavailable
from hatchvm.control.context import Context
from hatchvm.control.owner import Owner
from hatchvm.control.vms import upload
from hatchvm.domain import backoff
from hatchvm.domain.lifecycle import PUBLIC, Event, State
from hatchvm.domain.snapshot import Snapshot, SnapshotStatus, kept
from hatchvm.ports.house import Woken
from hatchvm.ports.vmm import PutRight
from hatchvm.telemetry import logs, metrics

_log = structlog.get_logger()


async def need(ctx: Context, vm_id: str, *, reason: str, timeout_s: float, by: str = "") -> None:
    """Return when the VM runs. See `ports.gate.Gate.need`."""
    owner = ctx.owners.find(vm_id)
    if owner is None:
        raise NotFound("vm not found")
    if owner.vm.state is State.RUNNING:
        return
    if owner.waking is None:
        owner.waking = owner.start(lambda: _wake(ctx, owner, reason, by), name="wake")
        owner.waking.add_done_callback(lambda _: setattr(owner, "waking", None))
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.shield(owner.waking)
    except TimeoutError as error:
        raise Unavailable("failed to wake vm", detail=f"not awake after {timeout_s:g} s", retry_after_s=1) from error


async def _wake(ctx: Context, owner: Owner, reason: str, by: str) -> None:
    """In the owner's turn. A VM that runs by now (a suspend that was taken back) is success."""
    if owner.vm.state is State.RUNNING:
        return
    if owner.vm.state is not State.SNAPSHOTTED:
        raise Unavailable(f'vm is in state "{PUBLIC[owner.vm.state]}", not proxying')
    wait_s = owner.retry_at - ctx.clock.monotonic()
    if wait_s > 0:
        raise Unavailable("failed to wake vm", detail=owner.vm.state_reason, retry_after_s=math.ceil(wait_s))
    await wake(ctx, owner, reason=reason, by=by)


async def wake(ctx: Context, owner: Owner, *, reason: str, by: str = "") -> None:
    """Restore the newest saved state, in the owner's turn. Raises Unavailable `failed to wake vm`."""
    began = ctx.clock.monotonic()
    _log.info(logs.WAKING, vm=owner.vm.id, reason=reason)
    await owner.move(Event.RESTORE)
    pending = await upload.stop(owner)
    try:
        async with asyncio.timeout(ctx.settings.wake_timeout_s):
            put_right = await _resume(ctx, owner)
    except (HatchError, TimeoutError) as error:
        await _failed(ctx, owner, error, reason)
        if pending is not None:
            upload.begin(ctx, owner, pending)
        raise Unavailable(
            "failed to wake vm", detail=owner.vm.state_reason, retry_after_s=backoff.delay_s(owner.vm.wake_failures)
        ) from error
    await owner.settle(Event.RESTORED, wake_failures=0, also=upload.forget(pending))
    owner.pending = None
    upload.remove_later(ctx, pending)
    owner.retry_at = 0.0
    seconds = ctx.clock.monotonic() - began
    owner.last_wake = Woken(at=ctx.clock.now(), reason=reason, by=by, seconds=seconds, put_right=put_right)
    metrics.WAKES.labels(reason, "ok").inc()
    metrics.WAKE_SECONDS.observe(seconds)
    _log.info(logs.RESTORED, vm=owner.vm.id, seconds=round(seconds, 3))


async def _resume(ctx: Context, owner: Owner) -> PutRight:
    """From the local pair; from the object store if this host has no sound one."""
    vm = owner.vm
    image = await ctx.image_of(vm)
    ports = {route.target_port for route in ctx.routes.of_vm(vm.id)}
    try:
        return await ctx.node.wake(vm, image, ports)
    except Corrupt:
        newest = await newest_snapshot(ctx, vm.id)
        if newest is None or newest.status is not SnapshotStatus.COMMITTED:
            raise
        await ctx.node.fetch(vm, image, newest, lazily=True)
        return await ctx.node.wake(vm, image, ports)


async def newest_snapshot(ctx: Context, vm_id: str) -> Snapshot | None:
    """The newest snapshot of a VM, committed or not."""
    async with ctx.store.begin() as tx:
        snapshots = kept(await tx.snapshots.list_for_vm(vm_id))
    return snapshots[0] if snapshots else None


async def _failed(ctx: Context, owner: Owner, error: HatchError | TimeoutError, reason: str) -> None:
    why = str(error) or f"the restore took longer than {ctx.settings.wake_timeout_s:g} s"
    failures = owner.vm.wake_failures + 1
    await owner.settle(Event.ABORTED, reason=f"wake failed: {why}", wake_failures=failures)
    owner.retry_at = ctx.clock.monotonic() + backoff.delay_s(failures)
    metrics.WAKES.labels(reason, "failed").inc()
    detail = error.detail if isinstance(error, HatchError) else ""
    _log.error(logs.WAKE_FAILED, vm=owner.vm.id, error=why, detail=detail, failures=failures)
