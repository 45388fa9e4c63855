"""`/vms`: create, look, delete, and move between states."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter

from hatchvm.api.answers import Deleted, SnapshotAnswer, VMAnswer, snapshot_answer, vm_answer
from hatchvm.api.bodies import VMCreate, VMRestore
from hatchvm.api.context import Ctx
from hatchvm.api.guard import KeyRoute
from hatchvm.api.params import VMId, check_id, check_reference
from hatchvm.base import ids
from hatchvm.domain.vm import NewVM

router = APIRouter(prefix="/vms", tags=["VMs"], route_class=KeyRoute)

_DEFAULT_VM: Final = VMCreate()
_LATEST: Final = VMRestore()


@router.post("", status_code=201)
async def create_vm(context: Ctx, body: VMCreate = _DEFAULT_VM) -> VMAnswer:
    """Create a VM and start it: from an image, or as a copy of a snapshot. Returns when it runs."""
    given = body.given()
    _check_references(given)
    return vm_answer(await context.house.vms.create(NewVM(**given)), context)


@router.get("")
async def list_vms(context: Ctx) -> list[VMAnswer]:
    """Every VM, newest first."""
    return [vm_answer(vm, context) for vm in await context.house.vms.list()]


@router.get("/{vm_id}")
async def get_vm(context: Ctx, vm_id: VMId) -> VMAnswer:
    """One VM."""
    return vm_answer(await context.house.vms.get(vm_id), context)


@router.delete("/{vm_id}")
async def delete_vm(context: Ctx, vm_id: VMId) -> Deleted:
    """Delete a VM with its routes and snapshots. Stored data that only those need goes after a grace period."""
    await context.house.vms.delete(vm_id)
    return Deleted()


@router.post("/{vm_id}/stop")
async def stop_vm(context: Ctx, vm_id: VMId) -> VMAnswer:
    """Shut the guest down. Its disk stays; its memory does not."""
    return vm_answer(await context.house.vms.stop(vm_id), context)


@router.post("/{vm_id}/start")
async def start_vm(context: Ctx, vm_id: VMId) -> VMAnswer:
    """Boot a stopped VM from its disk."""
    return vm_answer(await context.house.vms.start(vm_id), context)


@router.post("/{vm_id}/snapshot", status_code=201)
async def snapshot_vm(context: Ctx, vm_id: VMId) -> SnapshotAnswer:
    """Suspend a running VM. Returns when its snapshot is committed in the object store."""
    return snapshot_answer(await context.house.vms.snapshot(vm_id))


@router.post("/{vm_id}/restore")
async def restore_vm(context: Ctx, vm_id: VMId, body: VMRestore = _LATEST) -> VMAnswer:
    """Resume a VM from a snapshot, exactly where it left off; or (`mode` `disk`) boot it from the snapshot's disk.

    Memory that does not fit this host is refused with the difference; its disk can still be booted.
    """
    snapshot_id = body.given().get("snapshot_id")
    if snapshot_id is not None:
        check_id(snapshot_id, ids.SNAPSHOT)
    return vm_answer(await context.house.vms.restore(vm_id, snapshot_id, disk=body.mode == "disk"), context)


@router.get("/{vm_id}/snapshots")
async def list_vm_snapshots(context: Ctx, vm_id: VMId) -> list[SnapshotAnswer]:
    """The snapshots of a VM, newest first."""
    return [snapshot_answer(snapshot) for snapshot in await context.house.vms.snapshots(vm_id)]


def _check_references(given: dict[str, Any]) -> None:
    if "image_id" in given:
        check_reference(given["image_id"], "image")
    if "template_id" in given:
        check_reference(given["template_id"], "template")
    if "snapshot_id" in given:
        check_id(given["snapshot_id"], ids.SNAPSHOT)
