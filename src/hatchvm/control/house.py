"""The control plane as one object: composes the use cases into `ports.house.House`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from hatchvm.base.errors import HatchError, Unavailable
from hatchvm.control.context import Context
from hatchvm.control.events import Bus
from hatchvm.control.holds import HoldCases
from hatchvm.control.idle import IdleMonitor, SSHSessions
from hatchvm.control.images import ImageCases, TemplateCases
from hatchvm.control.keys import KeyCases
from hatchvm.control.routes import RouteCases
from hatchvm.control.snapshots import SnapshotCases
from hatchvm.control.ssh_keys import SSHKeyCases
from hatchvm.control.storage import StorageCases
from hatchvm.control.vms import create, delete, power, restore, suspend, upload
from hatchvm.domain.lifecycle import PUBLIC
from hatchvm.domain.snapshot import Snapshot, kept
from hatchvm.domain.vm import VM, NewVM
from hatchvm.ports.house import Overview


class VMCases:
    """See `ports.house.VMs`. Each verb is a file in `control.vms`."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    async def create(self, new: NewVM) -> VM:
        return await create.create(self._ctx, new)

    async def list(self) -> Sequence[VM]:
        newest_first = sorted(self._ctx.owners, key=lambda owner: (owner.vm.created_at, owner.vm.id), reverse=True)
        return [owner.vm for owner in newest_first]

    async def get(self, vm_id: str) -> VM:
        return self._ctx.owners.get(vm_id).vm

    async def delete(self, vm_id: str) -> None:
        await delete.delete(self._ctx, vm_id)

    async def stop(self, vm_id: str) -> VM:
        return await power.stop(self._ctx, vm_id)

    async def start(self, vm_id: str) -> VM:
        return await power.start(self._ctx, vm_id)

    async def snapshot(self, vm_id: str) -> Snapshot:
        return await suspend.snapshot(self._ctx, vm_id)

    async def restore(self, vm_id: str, snapshot_id: str | None, *, disk: bool = False) -> VM:
        return await restore.restore(self._ctx, vm_id, snapshot_id, disk=disk)

    async def snapshots(self, vm_id: str) -> Sequence[Snapshot]:
        self._ctx.owners.get(vm_id)
        async with self._ctx.store.begin() as tx:
            return kept(await tx.snapshots.list_for_vm(vm_id))

    def last_active_at(self, vm: VM) -> datetime | None:
        owner = self._ctx.owners.find(vm.id)
        return owner.activity.last_active_at if owner else vm.last_active_at


class ControlPlane:
    """See `ports.house.House`. `idle` is what a daemon has to run."""

    def __init__(
        self, ctx: Context, images: ImageCases, keys: KeyCases, ssh_sessions: SSHSessions = lambda _: ()
    ) -> None:
        self._ctx = ctx
        self.idle = IdleMonitor(ctx, ssh_sessions)
        self.vms = VMCases(ctx)
        self.routes = RouteCases(ctx)
        self.holds = HoldCases(ctx, self.idle)
        self.snapshots = SnapshotCases(ctx)
        self.storage = StorageCases(ctx)
        self.images = images
        self.templates = TemplateCases(ctx)
        self.keys = keys
        self.ssh_keys = SSHKeyCases(ctx)
        self.events: Bus = ctx.bus

    async def health(self) -> tuple[int, int]:
        return sum(1 for _ in self._ctx.owners), len(self._ctx.routes)

    async def overview(self) -> Overview:
        states = Counter(PUBLIC[owner.vm.state] for owner in self._ctx.owners)
        return Overview(store=self._ctx.settings.snapshot_store, vms=states, uploads=upload.pending(self._ctx))

    async def ready(self) -> None:
        try:
            async with self._ctx.store.begin() as tx:
                await tx.keys.list()
            await self._ctx.node.ready()
        except HatchError as error:
            raise Unavailable(f"not ready: {error}", detail=error.detail) from error
