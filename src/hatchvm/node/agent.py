"""The host agent: composes the sequences of this floor into `ports.node.Node` and knows which VMMs live."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

from hatchvm.base import tasks
from hatchvm.base.errors import Conflict, Unavailable
from hatchvm.base.paths import DataPaths, VMPaths
from hatchvm.domain.image import Image
from hatchvm.domain.lifecycle import Found
from hatchvm.domain.snapshot import Snapshot
from hatchvm.domain.stored import Audit, Collected
from hatchvm.domain.vm import VM
from hatchvm.node import adopt, console, launch, lazy, pair, storage, suspend, touched, wake
from hatchvm.node.host import Host, seat_of
from hatchvm.node.lazy import Pager, Pagers
from hatchvm.ports.network import Network
from hatchvm.ports.node import OnExit, Sizes, Suspended
from hatchvm.ports.vmm import Driver, Exit, Handle, PutRight
from hatchvm.snapshots.engine import SnapshotEngine
from hatchvm.snapshots.seal import Ring


class LocalNode:
    """This host. `engine` is None where no snapshot store is configured."""

    def __init__(
        self,
        node_id: str,
        paths: DataPaths,
        driver: Driver,
        engine: SnapshotEngine | None,
        pagers: Pagers | None = None,
        *,
        private: Network,
        bridge: Network | None = None,
        boot_id: str,
    ) -> None:
        """Without `pagers`, VMs are fetched whole before they run. Networks: see `Host`."""
        self.id = node_id
        pagers = pagers or Pagers(lazy=False, ring=Ring())
        self._host = Host(
            paths=paths,
            driver=driver,
            engine=engine,
            pagers=pagers,
            private=private,
            bridge=bridge,
            boot_id=boot_id,
        )
        self._live: dict[str, Handle] = {}
        #: Pagers of VMs that run, and of those whose next step is a wake.
        self._pagers: dict[str, Pager] = {}
        self._recording: dict[str, asyncio.Task[None]] = {}
        #: Snapshots being stored or fetched.
        self._moving = 0
        self._on_exit: OnExit = lambda vm_id, ended: None

    def on_exit(self, callback: OnExit) -> None:
        """Who is told when a VMM ends that nobody asked to end."""
        self._on_exit = callback

    async def prepare(self, vm: VM, image: Image, user_data: str | None) -> None:
        await launch.prepare(self._host, vm, image, user_data)

    async def boot(self, vm: VM, image: Image) -> None:
        await self._end(vm.id)
        self._keep(vm.id, await launch.boot(self._host, vm, image))

    async def suspend(self, vm: VM, image: Image, wanted: Callable[[], bool]) -> Suspended | None:
        handle = self._handle(vm.id)
        done = await suspend.save(self._host, vm, image, handle, self._pagers.get(vm.id), wanted)
        if done is not None:
            self._live.pop(vm.id, None)
            self._stop_recording(vm.id)
            await suspend.let_go(handle)
            await self._end_pager(vm.id)
        return done

    async def wake(self, vm: VM, image: Image, ports: Collection[int]) -> PutRight:
        pager = None if vm.id in self._live else self._pagers.get(vm.id)
        if pager is None:
            await self._end(vm.id)
            woken = await wake.wake(self._host, vm, image, ports)
        else:
            try:
                woken = await wake.wake_lazily(self._host, vm, image, ports, pager)
            except BaseException:
                await self._end(vm.id)
                raise
        self._keep(vm.id, woken.handle)
        if woken.pager is not None and woken.pager is not pager:
            self._keep_pager(vm.id, woken.pager)
        if woken.pager is not None and self._host.driver.lazy_memory == "faults":
            recording = touched.record_faults(self._vm(vm.id), woken.pager)
        else:
            recording = touched.record_file(self._vm(vm.id), woken.handle.pid)
        self._recording[vm.id] = tasks.supervise(recording, name=f"record {vm.id}")
        return await wake.put_right(vm, woken)

    async def halt(self, vm_id: str, *, timeout_s: float) -> None:
        handle = self._live.pop(vm_id, None)
        if handle is not None:
            await launch.halt(handle, timeout_s=timeout_s)
        self._stop_recording(vm_id)
        await self._end_pager(vm_id)
        launch.forget_memory(self._vm(vm_id))

    async def destroy(self, vm: VM) -> None:
        await self._end(vm.id)
        await lazy.kill_stray(self._vm(vm.id))
        if (seat := seat_of(vm)) is not None and (network := self._host.network(seat)) is not None:
            await network.forget(seat)
        await asyncio.to_thread(shutil.rmtree, self._vm(vm.id).root, ignore_errors=True)

    async def upload(self, vm: VM, snapshot: Snapshot, bases: Sequence[Snapshot]) -> Sizes:
        with self._moves():
            return await storage.upload(self._host, vm, snapshot, bases)

    async def fetch(self, vm: VM, image: Image, source: Snapshot, *, lazily: bool) -> None:
        await self._end_pager(vm.id)
        with self._moves():
            pager = await storage.fetch(self._host, vm, image, source, lazily=lazily)
            if pager is not None:
                self._keep_pager(vm.id, pager)

    async def fetch_disk(self, vm: VM, image: Image, source: Snapshot) -> None:
        await self._end_pager(vm.id)
        with self._moves():
            await storage.fetch_disk(self._host, vm, image, source)

    async def saved(self, vm_id: str) -> bool:
        return pair.sound(self._vm(vm_id), self._host.boot_id)

    async def discard(self, snapshot: Snapshot) -> None:
        keys, engine = storage.keys_of(snapshot), self._host.snapshots()
        await lazy.release(self._host.paths, engine, self._host.pagers, lambda needed: needed == keys)
        await engine.delete(keys)

    async def discard_all(self, vm_id: str) -> None:
        engine = self._host.engine
        if engine is not None:
            await lazy.release(self._host.paths, engine, self._host.pagers, lambda needed: needed.vm_id == vm_id)
            await engine.delete_vm(vm_id)

    async def committed(self, snapshot: Snapshot) -> Sizes | None:
        return await storage.committed(self._host, snapshot)

    async def verify(self, snapshot: Snapshot) -> int:
        return await storage.verify(self._host, snapshot)

    async def collect(self, grace_s: float | None, rows: Callable[[], Awaitable[Collection[str]]]) -> Collected:
        engine = self._host.snapshots()
        grace = engine.grace if grace_s is None else timedelta(seconds=grace_s)
        whole = [] if grace >= engine.grace else list(self._pagers.values())
        for pager in whole:
            await pager.finish()

        def allow() -> None:
            if self._moving or any(pager not in whole for pager in self._pagers.values()):
                raise Conflict("a snapshot is being stored or restored, which needs the usual grace; try again later")

        return await engine.collect(grace, rows=rows, allow=allow)

    async def audit(self, rows: Collection[str]) -> Audit:
        return await self._host.snapshots().audit(rows)

    async def adopt(self, vm: VM, image: Image) -> Found:
        adopted = await adopt.adopt(self._host, vm, image)
        if adopted.pager is not None:
            self._keep_pager(vm.id, adopted.pager)
        if adopted.handle is not None:
            self._keep(vm.id, adopted.handle)
        return adopted.found

    async def sweep(self, known: Collection[VM]) -> list[str]:
        swept = await adopt.sweep(self._host, {vm.id for vm in known})
        if self._host.bridge is not None:
            seats = [seat for vm in known if (seat := seat_of(vm)) is not None and seat.tap_name is not None]
            await self._host.bridge.sweep(seats)
        return swept

    async def dial(self, vm: VM, port: int, *, patient_until: float, deadline: float) -> socket.socket:
        handle, seat = self._handle(vm.id), seat_of(vm)
        if seat is None:
            raise Unavailable("vm has no guest IP")
        network = self._host.needed_network(seat)
        return await network.dial(seat, handle, port, patient_until=patient_until, deadline=deadline)

    async def ready(self) -> None:
        await self._host.driver.check()
        if self._host.bridge is not None:
            await self._host.bridge.check()
        if self._host.engine is not None:
            await self._host.engine.check()

    async def tidy(self) -> None:
        self._host.pagers.warm(always=self._host.driver.memory_by_faults)
        for vm_id in list(self._live):
            console.trim(self._vm(vm_id))

    def _vm(self, vm_id: str) -> VMPaths:
        return self._host.paths.vm(vm_id)

    def _handle(self, vm_id: str) -> Handle:
        handle = self._live.get(vm_id)
        if handle is None:
            raise Unavailable("the VM's process is not running")
        return handle

    @contextmanager
    def _moves(self) -> Iterator[None]:
        self._moving += 1
        try:
            yield
        finally:
            self._moving -= 1

    async def _end(self, vm_id: str) -> None:
        """Whatever went before: two processes must never share a VM's files."""
        handle = self._live.pop(vm_id, None)
        if handle is not None:
            await handle.kill()
        await self._host.driver.kill_stray(self._vm(vm_id))
        self._stop_recording(vm_id)
        await self._end_pager(vm_id)

    async def _end_pager(self, vm_id: str) -> None:
        pager = self._pagers.pop(vm_id, None)
        if pager is not None:
            await pager.end()

    def _stop_recording(self, vm_id: str) -> None:
        recording = self._recording.pop(vm_id, None)
        if recording is not None:
            recording.cancel()

    def _keep(self, vm_id: str, handle: Handle) -> None:
        self._live[vm_id] = handle
        tasks.supervise(self._watch(vm_id, handle), name=f"watch {vm_id}")

    async def _watch(self, vm_id: str, handle: Handle) -> None:
        """Report an end that no sequence of ours brought about (those take the handle away first)."""
        ended = await handle.wait()
        pager = self._pagers.get(vm_id)
        wrong = await pager.wrong() if pager is not None else None
        if self._live.get(vm_id) is handle:
            del self._live[vm_id]
            self._on_exit(vm_id, replace(ended, reason=f"{wrong}; {ended.reason}") if wrong else ended)

    def _keep_pager(self, vm_id: str, pager: Pager) -> None:
        self._pagers[vm_id] = pager
        tasks.supervise(self._watch_pager(vm_id, pager), name=f"watch pager {vm_id}")

    async def _watch_pager(self, vm_id: str, pager: Pager) -> None:
        """A guest whose memory nobody serves any more is lost. What the pager knew to be durable of its disk is not."""
        await pager.wait()
        if self._pagers.get(vm_id) is not pager:
            return
        del self._pagers[vm_id]
        await pager.kill()
        handle = self._live.pop(vm_id, None)
        if handle is not None:
            await handle.kill()
            self._on_exit(vm_id, Exit(False, "the process that served the VM's memory ended unexpectedly"))
