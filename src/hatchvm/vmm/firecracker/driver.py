"""The Firecracker driver: see `ports.vmm.Driver` for what each method promises.

A guest's memory is private to its process: anonymous when it is booted, a private mapping of the memory file (or pages
that a pager installs) when it is restored. A capture writes what changed. After a boot that is everything, and goes
straight into the memory file. After a restore it goes into a file beside, and is then joined with the memory file: the
process still maps that, but where it is written to the process has pages of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal

from hatchvm.base import process, tasks
from hatchvm.base.errors import Corrupt, Exhausted, HatchError, Unsupported
from hatchvm.base.paths import VMPaths
from hatchvm.base.process import Marks, Process
from hatchvm.base.units import MIB
from hatchvm.domain.image import DiskFormat
from hatchvm.domain.snapshot import Stamp
from hatchvm.ports.vmm import LaunchPlan
from hatchvm.vmm.firecracker import disk as disks
from hatchvm.vmm.firecracker import requests
from hatchvm.vmm.firecracker.api import Api, Gone, Refused
from hatchvm.vmm.firecracker.box import Box, Entry, Limits
from hatchvm.vmm.firecracker.handle import Firecracker, last_words, leave
from hatchvm.vmm.firecracker.requests import Devices, Request
from hatchvm.vmm.firecracker.version import Installed, installed, parse
from hatchvm.vmm.host import Kernels, cpu_of

_OPENED_S: Final = 10.0
_START_S: Final = 60.0
_LOG: Final = ("--log-path", requests.LOG, "--level", "Info", "--metrics-path", requests.METRICS)
#: In place of a nest, for a guest without a network. The program becomes the one that follows.
_ALONE: Final = ("unshare", "--net", "--")
#: In a stamp: which Firecracker wrote a state, and in which format.
_WRITTEN: Final = re.compile(r".* \((v[\d.]+)\)")


class FirecrackerDriver:
    """A `Driver`. `here`: Firecrackers of this host; the first one starts guests, all of them restore what they can.
    `box`: what they see of the host."""

    name = "firecracker"
    taps: Literal["fd", "name"] = "name"
    lazy_memory: Literal["file", "faults"] = "faults"

    def __init__(self, here: Sequence[Installed], box: Box, devices: Devices) -> None:
        self._installed = here
        self._box = box
        self._devices = devices
        self.memory_by_faults = devices.huge_pages
        self._kernels = Kernels()
        self._cpu = cpu_of(Path("/proc/cpuinfo").read_text())
        #: What `check` found: it asks programs, and is asked by every probe of the daemon's health.
        self._checked = ""

    async def check(self) -> str:
        if not self._checked:
            how = await self._box.check(self._installed[0].path)
            self._checked = f"Firecracker {self._installed[0].version}, {how}"
        return self._checked

    async def stamp(self, plan: LaunchPlan, wanted: Stamp | None = None) -> Stamp:
        wrote = _wrote(self._installed[0])
        if wanted is not None and wanted.vmm == "Firecracker" and self._reader(wanted.vmm_version) is not None:
            wrote = wanted.vmm_version
        model, flags = self._cpu
        return Stamp(
            vmm="Firecracker",
            vmm_version=wrote,
            machine="firecracker",
            accel="kvm",
            cpu_model=model,
            cpu_flags=flags,
            mem_mib=plan.mem_mib,
            vcpu_count=plan.vcpu_count,
            devices=requests.devices_digest(plan, self._devices),
            kernel_digest=await self._kernels.digest(plan.boot.kernel),
            image_digest=plan.image_digest,
        )

    async def create_disk(self, base: Path | None, base_format: DiskFormat, disk: Path) -> None:
        await tasks.finish(asyncio.to_thread(disks.create, base, base_format, disk), name=f"make {disk.name}")

    async def launch(self, plan: LaunchPlan) -> Firecracker:
        paths = plan.paths
        paths.memory.unlink(missing_ok=True)
        paths.changes.unlink(missing_ok=True)
        entries = [Entry(requests.KERNEL, plan.boot.kernel, writable=False)]
        if plan.boot.initrd is not None:
            entries.append(Entry(requests.INITRD, plan.boot.initrd, writable=False))
        entries.append(Entry(requests.CHANGES, paths.memory, writable=True))
        try:
            talk = requests.boot(plan, self._devices)
            return await self._start(plan, self._installed[0], entries, talk, [requests.START], clock=False)
        except Refused as error:
            raise Unsupported(f"the VMM did not start the guest: {error.detail}", detail=error.detail) from error

    async def restore(self, plan: LaunchPlan) -> Firecracker:
        paths = plan.paths
        for path, what in ((paths.memory, "memory"), (paths.state, "device state")):
            if not path.is_file():
                raise Corrupt(f"the saved {what} is missing", detail=str(path))
        if paths.memory.stat().st_size != plan.mem_mib * MIB:
            raise Corrupt("the saved memory has the wrong size", detail=str(paths.memory))
        reader = self._installed[0] if plan.written_by is None else self._reader(plan.written_by)
        if reader is None:
            raise Unsupported(f"no Firecracker here can load what {plan.written_by} wrote; see HATCH_FIRECRACKER_BINS")
        paths.changes.unlink(missing_ok=True)
        served = (
            (requests.FAULTS, paths.faults)
            if requests.by_faults(plan, self._devices)
            else (requests.MEMORY, paths.memory)
        )
        mine = ((requests.STATE, paths.state), (requests.CHANGES, paths.changes), served)
        entries = [Entry(name, path, writable=True) for name, path in mine]
        try:
            return await self._load(plan, reader, entries)
        except Refused as error:
            if "No space left" in error.detail or "Cannot allocate memory" in error.detail:
                raise Exhausted("the host has not enough memory for this VM", detail=error.detail) from error
            raise Corrupt("the saved device state could not be loaded", detail=error.detail) from error

    async def _load(self, plan: LaunchPlan, reader: Installed, entries: Sequence[Entry]) -> Firecracker:
        """A host whose clock was not to be relied upon when the state was written gives no clock to the guest."""
        try:
            talk = requests.load(plan, self._devices, clock=True)
            return await self._start(plan, reader, entries, talk, clock=True)
        except Refused as error:
            if "clock_realtime" not in error.detail:
                raise
        talk = requests.load(plan, self._devices, clock=False)
        return await self._start(plan, reader, entries, talk, clock=False)

    async def adopt(self, plan: LaunchPlan) -> Firecracker | None:
        found = process.find(_marks(plan.paths))
        if found is None:
            return None
        api = Api(_marks(plan.paths).socket)
        try:
            version = await self._running(found, api)
        except BaseException:
            await api.close()
            raise
        return Firecracker(found, plan.paths, self._box, api, self._devices, version=version, clock=False)

    async def _running(self, process: Process, api: Api) -> str:
        """What this process is. If no such version is installed any more, its program is asked, which it still has."""
        said = (await api.send(requests.LOOK)).get("vmm_version")
        here = next((each for each in self._installed if str(each.version) == said), None)
        if here is None:
            here = await asyncio.to_thread(installed, f"/proc/{process.pid}/exe")
        return _wrote(here)

    async def kill_stray(self, paths: VMPaths) -> bool:
        found = process.find(_marks(paths))
        if found is not None:
            await self._end(found, paths)
        else:  # it may have ended while nobody looked
            await asyncio.to_thread(leave, self._box, paths)
        return found is not None

    async def _start(
        self,
        plan: LaunchPlan,
        binary: Installed,
        entries: Sequence[Entry],
        talk: Iterable[Request],
        last: Iterable[Request] = (),
        *,
        clock: bool,
    ) -> Firecracker:
        """A process that has answered all of `talk`, then of `last`, or none. Raises Refused with what it said.

        Its guest does not run before it is on the network: a daemon that dies in between leaves none that runs without.
        """
        paths, nest = plan.paths, plan.net.nest if plan.net else None
        if nest is not None:
            await nest.lay(self._box.uid(paths))
        spawning = tasks.spawn(asyncio.to_thread(self._spawn, plan, binary, entries), name=f"spawn {plan.vm_id}")
        try:
            child = await asyncio.shield(spawning)
        except asyncio.CancelledError:
            await tasks.finish(self._give_up(spawning, paths), name=f"give up {plan.vm_id}")
            raise
        api: Api | None = None
        try:
            api = Api(_marks(paths).socket)
            await self._opened(api, child)
            await asyncio.to_thread(self._box.settle, paths)
            for request in talk:
                await api.send(request, timeout_s=_START_S)
            if nest is not None:
                await nest.plug(child.pid)
            for request in last:
                await api.send(request, timeout_s=_START_S)
        except BaseException as error:
            if api is not None:
                await api.close()
            tail = await self._end(child, paths)
            if isinstance(error, Gone):
                raise Unsupported(f"the VMM did not start: {tail or error.message}", detail=error.detail) from error
            raise
        return Firecracker(child, paths, self._box, api, self._devices, version=_wrote(binary), clock=clock)

    async def _give_up(self, spawning: asyncio.Task[Process], paths: VMPaths) -> None:
        with contextlib.suppress(HatchError):
            await self._end(await spawning, paths)

    def _spawn(self, plan: LaunchPlan, binary: Installed, entries: Sequence[Entry]) -> Process:
        """In a network namespace of its own, whether or not there is a TAP in it. Raises Exhausted."""
        paths, nest = plan.paths, plan.net.nest if plan.net else None
        self._box.furnish(paths, binary.path, [*entries, *_files(plan)])
        limits = Limits(vcpu_count=plan.vcpu_count, mem_mib=plan.mem_mib)
        args = ("--api-sock", requests.API, *_LOG)
        argv, cwd = self._box.command(paths, binary.path, args, limits)
        alone = nest.inside() if nest is not None else contextlib.nullcontext()
        try:
            with alone:
                return process.spawn([*([] if nest else _ALONE), *argv], _marks(paths), cwd=cwd, stdout=paths.console)
        except OSError as error:
            leave(self._box, paths)
            raise Exhausted("the VMM could not be started: no room, or no right", detail=repr(error)) from error

    async def _opened(self, api: Api, child: Process) -> None:
        """Its socket is there. Raises Gone if it ends before."""
        ended = tasks.spawn(child.wait(), name="end of a VMM")
        opened = tasks.spawn(api.opened(), name="socket of a VMM")
        try:
            await asyncio.wait({ended, opened}, timeout=_OPENED_S, return_when=asyncio.FIRST_COMPLETED)
            if not opened.done():
                raise Gone("the VMM ended, or opened no socket in time")
        finally:
            await tasks.cancel_and_wait(ended)
            await tasks.cancel_and_wait(opened)

    async def _end(self, child: Process, paths: VMPaths) -> str:
        """What it wrote last."""
        child.signal(signal.SIGKILL)
        await asyncio.shield(tasks.spawn(child.wait(), name="end of a VMM"))
        tail = last_words(child)
        child.forget()
        await asyncio.to_thread(leave, self._box, paths)
        return tail

    def _reader(self, written_by: str) -> Installed | None:
        """The Firecracker that can load what that one wrote: that one itself, if it is here."""
        match = _WRITTEN.fullmatch(written_by)
        written = parse(match[1]) if match else None
        able = [each for each in self._installed if written is not None and each.loads(written)]
        return next((each for each in able if _wrote(each) == written_by), next(iter(able), None))


def _wrote(here: Installed) -> str:
    return f"{here.version} (v{here.snapshot_version})"


def _files(plan: LaunchPlan) -> list[Entry]:
    """What every process has inside."""
    paths = plan.paths
    entries = [Entry(requests.NEW_STATE, paths.new_state, writable=True)]
    entries.append(Entry(requests.LOG, paths.vmm_log, writable=True))
    entries.append(Entry(requests.METRICS, paths.metrics, writable=True))
    if plan.boot.rootfs is not None:
        served = paths.lazy / paths.disk.name
        entries.append(Entry(requests.DISK, served if plan.lazy else paths.disk, writable=True))
    if plan.has_seed:
        entries.append(Entry(requests.SEED, paths.seed, writable=True))
    return entries


def _marks(paths: VMPaths) -> Marks:
    return Marks(
        record=paths.process,
        socket=paths.box / requests.API,
        log=paths.vmm_log,
        program=b"\0--id\0" + paths.root.name.encode() + b"\0",
        inside=False,
    )
