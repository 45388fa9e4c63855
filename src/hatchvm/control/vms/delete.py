"""Deleting a VM: its process, files, objects and rows. Works in every state; repeating it finishes a half-done one."""

from __future__ import annotations

import structlog

from hatchvm.control.context import Context
from hatchvm.control.owner import Owner
from hatchvm.control.vms import upload
from hatchvm.domain.lifecycle import Event
from hatchvm.telemetry import logs

_log = structlog.get_logger()


async def delete(ctx: Context, vm_id: str) -> None:
    """Raises NotFound; Unavailable if the object store is down (then try again: the VM stays, without its process)."""
    owner = ctx.owners.get(vm_id)
    await owner.do(lambda: destroy(ctx, owner), name="delete")


async def destroy(ctx: Context, owner: Owner) -> None:
    """In the owner's turn."""
    vm_id = owner.vm.id
    await owner.move(Event.DELETE)
    await upload.stop(owner)
    await ctx.node.destroy(owner.vm)
    await ctx.node.discard_all(vm_id)
    ctx.routes.remove_vm(vm_id)
    await owner.forget()
    ctx.owners.remove(vm_id)
    _log.info(logs.VM_DELETED, vm=vm_id)
