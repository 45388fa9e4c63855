"""Stopping and starting: the guest's own shutdown, and a boot from its disk. And what to do about a VMM that died."""

from __future__ import annotations

import structlog

from hatchvm.base.errors import HatchError
from hatchvm.control.context import Context
from hatchvm.control.vms import upload
from hatchvm.domain.lifecycle import Event, State
from hatchvm.domain.vm import VM
from hatchvm.ports.vmm import Exit
from hatchvm.telemetry import logs

_log = structlog.get_logger()


async def stop(ctx: Context, vm_id: str) -> VM:
    """Ask the guest to shut down; of a sleeping VM only the disk remains."""
    owner = ctx.owners.get(vm_id)

    async def verb() -> VM:
        await owner.move(Event.STOP)
        pending = await upload.stop(owner)
        await ctx.node.halt(vm_id, timeout_s=ctx.settings.halt_s)
        owner.pending = None
        upload.remove_later(ctx, pending)
        return await owner.settle(Event.HALTED, also=upload.forget(pending))

    return await owner.do(verb, name="stop")


async def start(ctx: Context, vm_id: str) -> VM:
    """Boot from the disk. Raises Conflict unless the VM is stopped or in error."""
    owner = ctx.owners.get(vm_id)

    async def verb() -> VM:
        owner.activity.touch()  # whoever starts a VM uses it: idle time begins now
        await owner.move(Event.START, started_at=ctx.clock.now())
        try:
            await ctx.node.boot(owner.vm, await ctx.image_of(owner.vm))
        except HatchError as error:
            await owner.settle(Event.FAIL, reason=f"start failed: {error}")
            raise
        return await owner.settle(Event.BOOTED)

    return await owner.do(verb, name="start")


def ended(ctx: Context, vm_id: str, exit_: Exit) -> None:
    """A VMM ended that nobody asked to end. Its VM is stopped if the guest did it, in error if it crashed.

    When its turn comes another process may run already: the VM was saved, and woken again.
    """
    owner = ctx.owners.find(vm_id)
    if owner is None:
        return
    run = owner.runs

    async def verb() -> None:
        if owner.vm.state is not State.RUNNING or owner.runs != run:
            return
        _log.warning(logs.VM_ENDED, vm=vm_id, reason=exit_.reason)
        await ctx.node.halt(vm_id, timeout_s=0)
        await owner.settle(Event.LOST if exit_.by_guest else Event.FAIL, reason=exit_.reason)

    owner.start(verb, name="ended")
