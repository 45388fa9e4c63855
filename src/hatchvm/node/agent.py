"""The host agent: composes the sequences of this floor into `ports.node.Node` and knows which VMMs live."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import Callable, Collection

from hatchvm.base import tasks
from hatchvm.base.errors import Unavailable
from hatchvm.base.paths import DataPaths, VMPaths
from hatchvm.domain.image import Image
from hatchvm.domain.lifecycle import Found
from hatchvm.domain.snapshot import Snapshot
from hatchvm.domain.vm import VM
from hatchvm.node import adopt, console, launch, storage, suspend, wake
from hatchvm.node.host import Host
from hatchvm.ports.node import OnExit, Sizes, Suspended
from hatchvm.ports.vmm import Driver, Handle
from hatchvm.snapshots.engine import SnapshotEngine


class LocalNode:
    """This host. `engine` is None where no snapshot store is configured."""

    def __init__(
        self, node_id: str, paths: DataPaths, driver: Driver, engine: SnapshotEngine | None, *, boot_id: str
    ) -> None:
        self.id = node_id
        self._host = Host(paths=paths, driver=driver, engine=engine, boot_id=boot_id)
        self._live: dict[str, Handle] = {}
        self._on_exit: OnExit = lambda vm_id, ended: None

    def on_exit(self, callback: OnExit) -> None:
        """Who is told when a VMM ends that nobody asked to end."""
        self._on_exit = callback

    async def prepare(self, vm: VM, image: Image, user_data: str | None) -> None:
        await launch.prepare(self._host, vm, image, user_data)

    async def boot(self, vm: VM, image: Image) -> None:
        await self._end(vm.id)
        self._keep(vm.id, await launch.boot(self._host, vm, image))
        await self._expose_ssh(vm)

    async def suspend(self, vm: VM, image: Image, wanted: Callable[[], bool]) -> Suspended | None:
        handle = self._handle(vm.id)
        done = await suspend.save(self._host, vm, image, handle, wanted)
        if done is not None:
            self._live.pop(vm.id, None)
            await suspend.let_go(handle)
        return done

    async def wake(self, vm: VM, image: Image, ports: Collection[int]) -> None:
        await self._end(vm.id)
        self._keep(vm.id, await wake.wake(self._host, vm, image, ports))
        tasks.supervise(self._expose_ssh(vm), name=f"expose ssh {vm.id}")

    async def halt(self, vm_id: str, *, timeout_s: float) -> None:
        handle = self._live.pop(vm_id, None)
        if handle is not None:
            await launch.halt(handle, timeout_s=timeout_s)
        launch.forget_memory(self._vm(vm_id))

    async def destroy(self, vm_id: str) -> None:
        await self._end(vm_id)
        await asyncio.to_thread(shutil.rmtree, self._vm(vm_id).root, ignore_errors=True)

    async def upload(self, vm: VM, image: Image, snapshot: Snapshot) -> Sizes:
        return await storage.upload(self._host, vm, snapshot)

    async def fetch(self, vm: VM, image: Image, source: Snapshot) -> None:
        await storage.fetch(self._host, vm, image, source)

    async def discard(self, snapshot: Snapshot) -> None:
        await self._host.snapshots().delete(snapshot.vm_id, snapshot.id)

    async def discard_all(self, vm_id: str) -> None:
        if self._host.engine is not None:
            await self._host.engine.delete_vm(vm_id)

    async def committed(self, snapshot: Snapshot) -> Sizes | None:
        return await storage.committed(self._host, snapshot)

    async def adopt(self, vm: VM, image: Image) -> Found:
        found, handle = await adopt.adopt(self._host, vm, image)
        if handle is not None:
            self._keep(vm.id, handle)
        return found

    async def sweep(self, known: Collection[str]) -> list[str]:
        return await adopt.sweep(self._host, known)

    async def dial(self, vm_id: str, port: int, *, patient_until: float, deadline: float) -> socket.socket:
        return await self._handle(vm_id).dial(port, patient_until=patient_until, deadline=deadline)

    async def ready(self) -> None:
        await self._host.driver.check()
        if self._host.engine is not None:
            await self._host.engine.check()

    async def tidy(self) -> None:
        for vm_id in list(self._live):
            console.trim(self._vm(vm_id))

    def _vm(self, vm_id: str) -> VMPaths:
        return self._host.paths.vm(vm_id)

    def _handle(self, vm_id: str) -> Handle:
        handle = self._live.get(vm_id)
        if handle is None:
            raise Unavailable("the VM's process is not running")
        return handle

    async def _end(self, vm_id: str) -> None:
        """Whatever went before: two processes must never share a VM's files."""
        handle = self._live.pop(vm_id, None)
        if handle is not None:
            await handle.kill()
        await self._host.driver.kill_stray(self._vm(vm_id))

    def _keep(self, vm_id: str, handle: Handle) -> None:
        self._live[vm_id] = handle
        tasks.supervise(self._watch(vm_id, handle), name=f"watch {vm_id}")

    async def _watch(self, vm_id: str, handle: Handle) -> None:
        """Report an end that no sequence of ours brought about (those take the handle away first)."""
        ended = await handle.wait()
        if self._live.get(vm_id) is handle:
            del self._live[vm_id]
            self._on_exit(vm_id, ended)

    async def _expose_ssh(self, vm: VM) -> None:
        handle = self._live.get(vm.id)
        if vm.ssh_port is not None and handle is not None:
            await launch.expose_ssh(handle, vm)
