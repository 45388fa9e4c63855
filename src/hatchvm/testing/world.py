"""A whole house over a folder: everything real but the VMM, wired as `server.wiring` does it.

Every call of the driver, of the object store and every commit of the database is a step: recorded, and open to
interference (a failure, a request that arrives just then, the end of the daemon).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from hatchvm.base import tasks
from hatchvm.base.errors import Upstream
from hatchvm.base.paths import DataPaths, VMPaths
from hatchvm.control.context import Context, Settings
from hatchvm.control.events import Bus
from hatchvm.control.gate import HouseGate
from hatchvm.control.house import ControlPlane
from hatchvm.control.images import ImageCases
from hatchvm.control.keys import KeyCases
from hatchvm.control.owner import Owner, Owners
from hatchvm.control.reconcile import reconcile
from hatchvm.control.table import RouteTable
from hatchvm.control.vms import power
from hatchvm.domain.activity import Tracked
from hatchvm.domain.image import TINY, Boot, Image
from hatchvm.domain.lifecycle import State
from hatchvm.domain.snapshot import Snapshot
from hatchvm.domain.vm import VM, NewVM
from hatchvm.net.user import UserNetwork
from hatchvm.node.agent import LocalNode
from hatchvm.node.lazy import Pagers, kill_stray
from hatchvm.objects.directory import DirectoryStore
from hatchvm.ports.objects import ObjectInfo, ObjectStore
from hatchvm.ports.store import Tx
from hatchvm.ports.vmm import Exit
from hatchvm.snapshots.engine import SnapshotEngine
from hatchvm.snapshots.seal import Ring
from hatchvm.store.store import SqlStore
from hatchvm.testing.clock import SteeredClock
from hatchvm.testing.net.resolver import FakeResolver
from hatchvm.testing.vmm import ASKED, FakeDriver, Hook, Machines, no_hook, read_guest

BOOT_ID: Final = "boot-1"
NODE_ID: Final = "node-1"
SETTINGS: Final = Settings(
    default_image=TINY,
    default_vcpu=1,
    default_mem_mib=32,
    default_boot_args=None,
    ssh_ports=range(16000, 16100),
    idle_check_s=300,
    idle_timeout_s=1800,
    wake_timeout_s=120,
    snapshots_configured=True,
    snapshot_keep=3,
    host_mem_mib=4096,
    base_domains=("hatch.local", "hatch.localhost"),
)


class Hang:
    """`reached`: somebody stands still there. Set `go` to let everybody pass."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.go = asyncio.Event()


class Steps:
    """What the world did, in order. `interfere` is called with each step before it goes on."""

    def __init__(self, interfere: Hook = no_hook) -> None:
        self.taken: list[str] = []
        self.interfere = interfere

    async def __call__(self, step: str) -> None:
        self.taken.append(step)
        await self.interfere(step)

    def fail_at(self, step: str, error: Exception) -> None:
        """From now on that step fails, each time."""

        async def fail(at: str) -> None:
            if at == step:
                raise error

        self.interfere = fail

    def hang_at(self, step: str) -> Hang:
        """From now on whoever comes to that step stands still there until let go."""
        hang = Hang()

        async def stand_still(at: str) -> None:
            if at == step:
                hang.reached.set()
                await hang.go.wait()

        self.interfere = stand_still
        return hang


class SteppedStore:
    """A `Store` whose commits are steps."""

    def __init__(self, inner: SqlStore, step: Hook) -> None:
        self._inner = inner
        self._step = step
        self.open = inner.open
        self.close = inner.close

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Tx]:
        async with self._inner.begin() as tx:
            yield tx
            await self._step("commit")
        await self._step("commit done")


class SteppedObjects:
    """An `ObjectStore` whose calls are steps."""

    def __init__(self, inner: ObjectStore, step: Hook) -> None:
        self._inner = inner
        self._step = step
        self.info = inner.info
        self.locate = inner.locate
        self.check = inner.check

    async def put(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        await self._step("put")
        await self._inner.put(key, data, if_absent=if_absent)
        await self._step("put done")

    async def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        await self._step("get")
        return await self._inner.get(key, start=start, length=length)

    async def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        await self._step("list")
        async for info in self._inner.list(prefix):
            yield info

    async def delete(self, key: str) -> None:
        await self._step("delete")
        await self._inner.delete(key)
        await self._step("delete done")


class World:
    """One daemon over `root`. A second one over the same folder finds what the first left."""

    def __init__(
        self,
        root: Path,
        *,
        boot_id: str = BOOT_ID,
        clock: SteeredClock | None = None,
        lazy: bool = False,
        objects: ObjectStore | None = None,
        **settings: Any,
    ) -> None:
        """`lazy`: wakes from the object store are served by real pagers. `objects`: a store outside the folder."""
        self.root = root
        self.paths = DataPaths(root / "data")
        self.paths.root.mkdir(parents=True, exist_ok=True)
        self.step = Steps()
        self.clock = clock or SteeredClock()
        self.machines = Machines(root / "machines")
        self.driver = FakeDriver(self.machines, self.step)
        self.objects = SteppedObjects(objects or DirectoryStore(self.paths.objects), self.step)
        engine = SnapshotEngine(self.objects, self.paths.packs, self.clock)
        self.pagers = Pagers(lazy=lazy, ring=Ring())
        node = LocalNode(NODE_ID, self.paths, self.driver, engine, self.pagers, private=UserNetwork(), boot_id=boot_id)
        self.resolver = FakeResolver()
        self.ctx = Context(
            store=SteppedStore(SqlStore(f"sqlite:///{self.paths.database}"), self.step),
            node=node,
            clock=self.clock,
            bus=Bus(self.clock),
            owners=Owners(),
            routes=RouteTable(),
            settings=replace(SETTINGS, **settings),
            resolver=self.resolver,
            port_is_free=lambda port: True,
        )
        node.on_exit(lambda vm_id, ended: power.ended(self.ctx, vm_id, ended))
        #: SSH sessions past Hatch, with whatever VM.
        self.tracked: list[Tracked] = []
        self.house = ControlPlane(
            self.ctx,
            ImageCases(self.ctx, self.paths.images, self.paths.images.parent / "cache", ""),
            KeyCases(self.ctx, lambda: None),
            lambda vm: self.tracked,
        )
        self.vms = self.house.vms
        self.gate = HouseGate(self.ctx)
        self.idle = self.house.idle

    async def start(self) -> World:
        await self.ctx.store.open()
        async with self.ctx.store.begin() as tx:
            if not await tx.images.list():
                await tx.images.insert(_image(self.clock))
        await reconcile(self.ctx)
        return self

    async def stop(self) -> None:
        """End as the daemon does: VMs live on."""
        for owner in self.ctx.owners:
            if owner.upload is not None:
                await tasks.cancel_and_wait(owner.upload)
            await owner.idle(10)
        await self.ctx.store.close()

    @classmethod
    @asynccontextmanager
    async def running(cls, root: Path, **settings: Any) -> AsyncIterator[World]:
        world = await cls(root, **settings).start()
        try:
            yield world
        finally:
            world.step.interfere = no_hook
            await world.stop()
            for pid in world.machines.live():
                world.machines.end(pid, ASKED)
            world.pagers.close()
            for folder in world.paths.vms.glob("*"):
                await kill_stray(VMPaths(folder))
        assert not world.machines.violations

    async def vm(self, **fields: Any) -> VM:
        """A running VM with a route to its port 80, named like it."""
        vm = await self.vms.create(NewVM(**fields))
        await self.house.routes.create(vm.id, subdomain=vm.id, target_port=80, auto_wake=True)
        return vm

    async def asleep(self, **fields: Any) -> VM:
        """A sleeping VM whose snapshot is stored."""
        vm = await self.vm(**fields)
        await self.vms.snapshot(vm.id)
        return self.now(vm)

    def now(self, vm: VM) -> VM:
        return self.ctx.owners.get(vm.id).vm

    def state(self, vm: VM) -> State:
        return self.now(vm).state

    def owner(self, vm: VM) -> Owner:
        return self.ctx.owners.get(vm.id)

    def crash(self, vm: VM, *, by_guest: bool = False) -> None:
        """The VM's process ends without being asked to."""
        pid = self.machines.find(self.paths.vm(vm.id))
        assert pid is not None
        self.machines.end(pid, Exit(by_guest, "the guest shut down" if by_guest else "the VMM ended unexpectedly"))

    def memory(self, vm: VM) -> dict[str, Any]:
        """What the guest holds in its memory."""
        return read_guest(self.paths.vm(vm.id).memory)

    def disk(self, vm: VM) -> dict[str, Any]:
        """What the guest holds on its disk."""
        return read_guest(self.paths.vm(vm.id).disk)

    async def request(self, vm: VM) -> int:
        """What the proxy does with a request; how many the guest has answered since it booted."""
        hold = self.gate.hold(vm.id)
        try:
            route = self.gate.route(vm.id)
            assert route is not None
            while not self.gate.ready(route):
                await self.gate.need(vm.id, reason="http", timeout_s=30)
            sock = await self.gate.dial(vm.id, route.target_port, timeout_s=30)
            reader, writer = await asyncio.open_connection(sock=sock)
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            answer = await reader.read()
            writer.close()
            if not answer:
                raise Upstream("the guest hung up")
            return int(answer.rpartition(b"\r\n")[2])
        finally:
            hold.release()

    async def snapshots(self, vm: VM) -> list[Snapshot]:
        return list(await self.vms.snapshots(vm.id))

    async def rows(self) -> list[VM]:
        async with self.ctx.store.begin() as tx:
            return list(await tx.vms.list())


def _image(clock: SteeredClock) -> Image:
    boot = Boot(
        kernel=Path("/images/kernel"), initrd=None, rootfs=Path("/images/root"), rootfs_format="raw", boot_args="quiet"
    )
    return Image(id="img-000000000001", name=TINY, boot=boot, digest="d", size_bytes=1, created_at=clock.now())
