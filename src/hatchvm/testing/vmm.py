"""A VMM without virtual machines, whose mistakes show.

Its processes are files in a folder of their own, so they outlive a daemon and a VM's folder, as QEMU's do. Its guest is
one number that grows whenever it runs, kept in the memory file, in the disk and (at a capture) in the device state; now
and then it is also written to a page far away, and the first page knows what must be there. A real guest resumed from
state that does not fit its memory or disk is silently corrupted; this one writes the mistake down in `violations`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from hatchvm.base import tasks
from hatchvm.base.errors import Corrupt, Unavailable, Unsupported, Upstream, UpstreamTimeout
from hatchvm.base.paths import VMPaths
from hatchvm.base.units import MIB
from hatchvm.domain.image import DiskFormat
from hatchvm.domain.snapshot import Stamp
from hatchvm.ports.vmm import Exit, LaunchPlan, Pages, PutRight
from hatchvm.testing.pager.faulty import guest

#: Called before each step of a driver or handle (`pause`) and after it (`pause done`); may raise or wait.
Hook = Callable[[str], Awaitable[None]]

_BLOCK: Final = 4096
_LOOK_S: Final = 0.005
OPEN: Final = "open"
SILENT: Final = "silent"
ASKED: Final = Exit(True, "the VMM was asked to end")
#: A stamp, for tests that need one.
STAMP: Final = Stamp(
    vmm="fake",
    vmm_version="1",
    machine="number",
    accel="none",
    cpu_model="Fingers",
    cpu_flags="ten",
    mem_mib=1,
    vcpu_count=1,
    devices="d",
    kernel_digest="k",
    image_digest="i",
)


async def no_hook(step: str) -> None:
    """Lets every step pass."""


def read_guest(file: Path) -> dict[str, Any]:
    """What the guest keeps there: `life` (of this boot; not on disk), `ticks`, `requests` answered; `far`: page of the
    memory -> the number in it.
    """
    with file.open("rb") as source:
        content: dict[str, Any] = json.loads(source.read(_BLOCK).rstrip(b"\0"))
    return content


def _write_guest(file: Path, content: dict[str, Any], page: int = 0) -> None:
    """In place, as a guest does it: an earlier state of the file is gone."""
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(fd, _page(content), page * _BLOCK)
    finally:
        os.close(fd)


def _page(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode().ljust(_BLOCK, b"\0")


@dataclass
class Machines:
    """The host's side: which processes live, in files. `ports`: guest port -> OPEN or SILENT; others are closed.

    `tells`: whether a capture tells which pages were written.
    """

    folder: Path
    ports: dict[int, str] = field(default_factory=lambda: {80: OPEN})
    tells: bool = True
    ends: dict[int, asyncio.Future[Exit]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        (self.folder / "processes").mkdir(parents=True, exist_ok=True)

    @property
    def violations(self) -> list[str]:
        """What would have corrupted a real guest, over all daemons."""
        try:
            return (self.folder / "violations").read_text().splitlines()
        except FileNotFoundError:
            return []

    def violated(self, what: str) -> None:
        with (self.folder / "violations").open("a") as file:
            file.write(what + "\n")

    def start(self, paths: VMPaths) -> int:
        """A new process, paused."""
        if self.find(paths) is not None:
            self.violated(f"two processes share the files of {paths.root.name}")
        pid = 1 + max((int(entry.name) for entry in (self.folder / "processes").iterdir()), default=1000)
        self.write(pid, {"folder": str(paths.root), "running": False})
        self.ends[pid] = asyncio.get_running_loop().create_future()
        return pid

    def find(self, paths: VMPaths) -> int | None:
        """The live process over these files."""
        mine = (pid for pid, process in self.live().items() if process["folder"] == str(paths.root))
        return next(mine, None)

    def live(self) -> dict[int, dict[str, Any]]:
        texts = {int(entry.name): entry.read_text() for entry in (self.folder / "processes").iterdir()}
        return {pid: json.loads(text) for pid, text in texts.items() if text}

    def read(self, pid: int) -> dict[str, Any]:
        """Raises Unavailable if it has ended."""
        text = (self.folder / "processes" / str(pid)).read_text()
        if not text:
            raise Unavailable("the VMM is gone")
        content: dict[str, Any] = json.loads(text)
        return content

    def write(self, pid: int, process: dict[str, Any]) -> None:
        (self.folder / "processes" / str(pid)).write_text(json.dumps(process))

    def wrote(self, pid: int, pages: Iterable[int]) -> None:
        """The guest wrote to these pages of its memory: the process keeps count."""
        process = self.read(pid)
        self.write(pid, process | {"written": sorted({*pages, *process["written"]})})

    def end(self, pid: int, how: Exit) -> None:
        """The process ends, as `kill -9`, a crash or the guest's own shutdown would have it. May be repeated."""
        (self.folder / "processes" / str(pid)).write_text("")
        end = self.ends.get(pid)
        if end is not None and not end.done():
            end.set_result(how)


def _fault(plan: LaunchPlan) -> None:
    """Wait for all of the memory, as a VMM does that has it served by faults: from then on its file is whole."""
    size = plan.mem_mib * MIB
    with guest(plan.paths.faults, [(0, size)]) as vmm:
        try:
            vmm.read_at_once([[(at, 1) for at in range(0, size, _BLOCK)]])
        except EOFError as error:
            raise Unavailable("the VMM ended while the guest's memory was loaded") from error


class FakeHandle:
    """A `Handle`."""

    def __init__(self, machines: Machines, hook: Hook, plan: LaunchPlan, pid: int) -> None:
        self.pid = pid
        self._machines = machines
        self._hook = hook
        self._plan = plan
        self._accepted = set(plan.net.accepted if plan.net else ())

    @property
    def version(self) -> str:
        return STAMP.vmm_version

    @property
    def accepted(self) -> frozenset[int]:
        return frozenset(self._accepted)

    async def pause(self) -> None:
        await self._step("pause", lambda: self._run(False))

    async def resume(self) -> None:
        await self._step("resume", lambda: self._run(True))

    async def capture(self) -> Pages | None:
        await self._hook("capture")
        written = self._save()
        await self._hook("capture done")
        return np.array(written, np.uint32) if self._machines.tells else None

    async def running(self) -> bool:
        await self._hook("running")
        return bool(self._machines.read(self.pid)["running"])

    async def put_right(self, *, again: bool, timeout_s: float) -> PutRight:
        await self._hook("put_right")
        return PutRight(done=("clock", "random") if again else ("clock",))

    async def power_button(self) -> None:
        await self._step("power_button", lambda: self._machines.end(self.pid, Exit(True, "the guest shut down")))

    async def quit(self) -> None:
        await self._hook("quit")
        asyncio.get_running_loop().call_soon(self._machines.end, self.pid, ASKED)
        await self.wait()
        await self._hook("quit done")

    async def kill(self) -> None:
        self._machines.end(self.pid, ASKED)

    async def wait(self) -> Exit:
        return await asyncio.shield(self._machines.ends[self.pid])

    async def dial(self, port: int, *, patient_until: float, deadline: float) -> socket.socket:
        await self._hook("dial")
        self._machines.read(self.pid)
        loop = asyncio.get_running_loop()
        while (answer := self._answer(port)) != OPEN and port not in self._accepted:
            if answer == SILENT and loop.time() >= deadline:
                raise UpstreamTimeout("upstream timed out")
            if answer is None and loop.time() >= min(patient_until, deadline):
                raise Upstream("upstream refused connection")
            await asyncio.sleep(_LOOK_S)
        self._accepted.add(port)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        tasks.supervise(self._serve(*await asyncio.open_connection(sock=theirs)), name=f"guest of {self.pid}")
        return ours

    def _answer(self, port: int) -> str | None:
        """A guest that stands still says nothing."""
        return self._machines.ports.get(port) if self._machines.read(self.pid)["running"] else SILENT

    async def _step(self, name: str, work: Callable[[], None]) -> None:
        await self._hook(name)
        self._machines.read(self.pid)
        work()
        await self._hook(f"{name} done")

    def _run(self, running: bool) -> None:
        """The guest runs until it is paused and as soon as it is resumed: both move it on."""
        process = self._machines.read(self.pid)
        if process["running"] == running:
            return
        loaded = process.pop("loaded", None)
        memory, disk = self._files()
        if loaded is not None and (loaded["memory"], loaded["disk"]) != (memory, disk):
            self._machines.violated(f"{self._plan.vm_id} resumed with state {loaded}, memory {memory}, disk {disk}")
        self._machines.write(self.pid, process | {"running": running})
        self._tick()

    def _tick(self) -> None:
        """Every third time a far page is written, too; never the one of the last time."""
        memory, disk = self._files()
        self._look_far(memory["far"])
        memory["ticks"] += 1
        if memory["ticks"] % 3 == 0:
            page = (self._plan.mem_mib * MIB // _BLOCK - 1) // (1 + memory["ticks"] % 4)
            memory["far"][str(page)] = memory["ticks"]
            self._write(page, {"ticks": memory["ticks"]})
        self._write(0, memory)
        if disk is not None:
            _write_guest(self._disk, disk | {"ticks": disk["ticks"] + 1})

    def _look_far(self, far: dict[str, int]) -> None:
        with self._memory.open("rb") as file:
            for page, ticks in far.items():
                if os.pread(file.fileno(), _BLOCK, int(page) * _BLOCK) != _page({"ticks": ticks}):
                    self._machines.violated(f"{self._plan.vm_id} has lost what it wrote to page {page} at {ticks}")

    def _write(self, page: int, content: dict[str, Any]) -> None:
        """To the memory; the process keeps count."""
        _write_guest(self._memory, content, page)
        self._machines.wrote(self.pid, [page])

    @property
    def _memory(self) -> Path:
        return Path(self._machines.read(self.pid)["files"]["memory"])

    @property
    def _disk(self) -> Path:
        return Path(self._machines.read(self.pid)["files"]["disk"])

    def _files(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        return read_guest(self._memory), read_guest(self._disk) if self._disk.exists() else None

    def _save(self) -> list[int]:
        """The pages that were written since the last one."""
        memory, disk = self._files()
        self._plan.paths.state.write_text(json.dumps({"memory": memory, "disk": disk}))
        process = self._machines.read(self.pid)
        self._machines.write(self.pid, process | {"written": []})
        written: list[int] = process["written"]
        return written

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request: the guest answers how many it has answered, which only its memory knows."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, Unavailable), contextlib.closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            if not self._machines.read(self.pid)["running"]:
                return
            memory = read_guest(self._memory)
            memory["requests"] += 1
            self._write(0, memory)
            writer.write(b"HTTP/1.0 200 OK\r\n\r\n%d" % memory["requests"])


class FakeDriver:
    """A `Driver` over `Machines`."""

    name = "fake"
    taps: Literal["fd", "name"] = "fd"
    #: With `faults` all pages come through a real userfaultfd; then the file that the pager fills is the memory.
    lazy_memory: Literal["file", "faults"] = "file"
    memory_by_faults = False

    def __init__(self, machines: Machines, hook: Hook = no_hook) -> None:
        self._machines = machines
        self._hook = hook
        #: Fields of a stamp in which this host differs from every other one.
        self.differs: dict[str, Any] = {}

    async def check(self) -> str:
        return "no virtual machines at all"

    async def stamp(self, plan: LaunchPlan, wanted: Stamp | None = None) -> Stamp:
        await self._hook("stamp")
        stamp = replace(
            STAMP,
            mem_mib=plan.mem_mib,
            vcpu_count=plan.vcpu_count,
            devices="net" if plan.net else "",
            kernel_digest=str(plan.boot.kernel),
            image_digest=plan.image_digest,
        )
        return replace(stamp, **self.differs)

    async def create_disk(self, base: Path | None, base_format: DiskFormat, disk: Path) -> None:
        await self._hook("create_disk")
        _write_guest(disk, {"ticks": 0})
        await self._hook("create_disk done")

    async def launch(self, plan: LaunchPlan) -> FakeHandle:
        if plan.boot.rootfs is not None and not plan.paths.disk.exists():
            raise Unsupported("the VMM did not start: no disk")
        plan.paths.memory.unlink(missing_ok=True)
        _write_guest(plan.paths.memory, {"life": secrets.token_hex(4), "ticks": 0, "requests": 0, "far": {}})
        os.truncate(plan.paths.memory, plan.mem_mib * MIB)
        return await self._start("launch", plan, {"running": True, "written": [0]})

    async def restore(self, plan: LaunchPlan) -> FakeHandle:
        try:
            loaded = json.loads(plan.paths.state.read_bytes())
            if plan.paths.memory.stat().st_size != plan.mem_mib * MIB:
                raise Corrupt("the saved memory has the wrong size")
        except FileNotFoundError as error:
            raise Corrupt("a part of the saved VM is missing") from error
        except ValueError as error:
            raise Corrupt("the saved device state could not be loaded") from error
        if self.lazy_memory == "faults" if plan.lazy else self.memory_by_faults:
            await asyncio.to_thread(_fault, plan)
        return await self._start("restore", plan, {"loaded": loaded, "written": []})

    async def adopt(self, plan: LaunchPlan) -> FakeHandle | None:
        await self._hook("adopt")
        pid = self._machines.find(plan.paths)
        if pid is None:
            return None
        self._machines.ends.setdefault(pid, asyncio.get_running_loop().create_future())
        return FakeHandle(self._machines, self._hook, plan, pid)

    async def kill_stray(self, paths: VMPaths) -> bool:
        await self._hook("kill_stray")
        pid = self._machines.find(paths)
        if pid is None:
            return False
        self._machines.end(pid, ASKED)
        return True

    async def _start(self, step: str, plan: LaunchPlan, extra: dict[str, Any]) -> FakeHandle:
        """Nothing is left behind if the step fails after the process started."""
        await self._hook(step)
        pid = self._machines.start(plan.paths)
        disk = plan.paths.lazy if plan.lazy else plan.paths.root
        memory = plan.paths.root if self.lazy_memory == "faults" else disk
        files = {"memory": str(memory / plan.paths.memory.name), "disk": str(disk / plan.paths.disk.name)}
        self._machines.write(pid, self._machines.read(pid) | {"files": files} | extra)
        try:
            await self._hook(f"{step} done")
        except BaseException:
            self._machines.end(pid, ASKED)
            raise
        return FakeHandle(self._machines, self._hook, plan, pid)
