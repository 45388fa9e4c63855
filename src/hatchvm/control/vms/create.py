"""Creating a VM: decide, write the row, make its parts, start it. Any failure removes what was made, row included."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface

import structlog

from hatchvm.base import ids, tasks
from hatchvm.base.errors import Conflict, HatchError, Unsupported
from hatchvm.control.context import Context
from hatchvm.control.owner import Owner
from hatchvm.domain import addressing, admission
from hatchvm.domain.image import Image, Template
from hatchvm.domain.lifecycle import Event, State
from hatchvm.domain.snapshot import Snapshot, SnapshotStatus
from hatchvm.domain.vm import VM, NewVM
from hatchvm.ports.store import Tx
from hatchvm.telemetry import logs

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Sources:
    """What a request refers to. `bridge`: where its VM is plugged in; None: a private user network."""

    new: NewVM
    template: Template | None
    image: Image
    snapshot: Snapshot | None
    bridge: IPv4Interface | None


async def create(ctx: Context, new: NewVM) -> VM:
    """A running VM. See `ports.house.VMs.create`. A client that hangs up leaves it to be made all the same."""
    return await tasks.finish(_create(ctx, new), name="create")


async def _create(ctx: Context, new: NewVM) -> VM:
    async with ctx.store.begin() as tx:
        sources = await _look_up(ctx, tx, new)
        vm = _decide(ctx, sources)
        if vm.spec.enable_network:
            vm = await _addressed(ctx, tx, vm, sources)
        await tx.vms.insert(vm)
    owner = ctx.own(vm)
    return await owner.do(lambda: _start(ctx, owner, sources), name="create")


#: How many ports to try on the host before giving up finding one that no stranger listens on.
_LOOK = 100


async def _look_up(ctx: Context, tx: Tx, new: NewVM) -> _Sources:
    template = await tx.templates.find(new.template_id) if new.template_id is not None else None
    new = admission.with_template(new, template)
    bridge = ctx.settings.bridge
    snapshot = await tx.snapshots.get(new.snapshot_id) if new.snapshot_id is not None else None
    if snapshot is not None:
        if snapshot.status is not SnapshotStatus.COMMITTED:
            raise Conflict("the snapshot is not stored yet; try again when its status is committed")
        if new.image_id is not None:
            new = replace(new, image_id=(await tx.images.find(new.image_id)).id)
        config = json.loads(snapshot.vm_config)
        bridge = _bridge_of_copy(bridge, bridged=config.pop("bridged", False))
        new = admission.as_copy(new, config)
    image = await tx.images.find(new.image_id or ctx.settings.default_image)
    return _Sources(new, template, image, snapshot, bridge)


def _decide(ctx: Context, sources: _Sources) -> VM:
    settings, new = ctx.settings, sources.new
    defaults = admission.Defaults(
        image=settings.default_image,
        vcpu_count=settings.default_vcpu,
        mem_mib=settings.default_mem_mib,
        boot_args=settings.default_boot_args if new.image_id is None else None,  # they are the default image's
    )
    spec = admission.specify(new, sources.template, sources.image, defaults, host_mem_mib=settings.host_mem_mib)
    vm_id, now = ids.new(ids.VM), ctx.clock.now()
    return VM(
        id=vm_id,
        spec=spec,
        state=State.STARTING,
        node_id=ctx.node.id,
        created_at=now,
        updated_at=now,
        started_at=now,
    )


async def _addressed(ctx: Context, tx: Tx, vm: VM, sources: _Sources) -> VM:
    """The VM with its addresses and its SSH port, chosen while nobody else can take them."""
    wanted, bridge = sources.new, sources.bridge
    mac = addressing.check_mac(wanted.guest_mac) if wanted.guest_mac is not None else addressing.mac_of(vm.id)
    if bridge is None:
        vm = replace(vm, guest_ip=addressing.user_guest_ip(wanted.guest_ip), guest_mac=mac)
    else:
        address = addressing.bridge_address(wanted.guest_ip, bridge, await tx.vms.used_addresses())
        vm = replace(vm, guest_ip=address, guest_mac=mac, tap_name=vm.id)
    used = await tx.vms.used_ssh_ports()
    free = [port for port in ctx.settings.ssh_ports if port not in used]
    taken = used | {port for port in free[:_LOOK] if not ctx.port_is_free(port)}
    return replace(vm, ssh_port=addressing.first_free(ctx.settings.ssh_ports, taken))


def _bridge_of_copy(bridge: IPv4Interface | None, *, bridged: bool) -> IPv4Interface | None:
    """A copy's memory knows the kind of network it was saved on. Raises Unsupported if this node has none such."""
    if bridged and bridge is None:
        raise Unsupported("the snapshot is of a VM on the bridge; start Hatch with HATCH_NETWORK=bridge")
    return bridge if bridged else None


async def _start(ctx: Context, owner: Owner, sources: _Sources) -> VM:
    vm = owner.vm
    try:
        await ctx.node.prepare(vm, sources.image, vm.spec.user_data)
        if sources.snapshot is None:
            await ctx.node.boot(vm, sources.image)
        else:
            await ctx.node.fetch(vm, sources.image, sources.snapshot, lazily=True)
            await ctx.node.wake(vm, sources.image, ())
    except BaseException as error:
        await ctx.node.destroy(vm)
        await _forget(ctx, owner, error)
        raise
    _log.info(logs.VM_CREATED, vm=vm.id, image=sources.image.name or sources.image.id)
    return await owner.settle(Event.BOOTED)


async def _forget(ctx: Context, owner: Owner, error: BaseException) -> None:
    """If not even the row can be removed now, it says what happened; it can be deleted later."""
    try:
        await owner.forget()
    except HatchError:
        await owner.settle(Event.FAIL, reason=f"create failed: {error}")
    else:
        ctx.owners.remove(owner.vm.id)
