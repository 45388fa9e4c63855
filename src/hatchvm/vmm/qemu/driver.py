"""The QEMU driver: see `ports.vmm.Driver` for what each method promises.

RAM is a file mapped shared, so a suspend writes only device state (~60 KB) and a wake copies nothing: the same file is
mapped again. Measured on QEMU 7.2; the capability that leaves RAM in its file is called `x-ignore-shared`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal

from hatchvm.base import sockets, tasks
from hatchvm.base.errors import Corrupt, Exhausted, HatchError, Internal, Unavailable, Unsupported
from hatchvm.base.paths import VMPaths
from hatchvm.base.process import Process
from hatchvm.domain.image import DiskFormat
from hatchvm.domain.snapshot import Stamp
from hatchvm.ports.vmm import LaunchPlan
from hatchvm.vmm.host import Kernels
from hatchvm.vmm.qemu import cmdline, process
from hatchvm.vmm.qemu.accel import Accelerator
from hatchvm.vmm.qemu.handle import CAPABILITIES, QEMU
from hatchvm.vmm.qemu.qmp import QMP, QMPError
from hatchvm.vmm.qemu.reach import Reach, free_ports, parse_usernet

_FORWARD_RACES: Final = 4
_NEW_DISK: Final = "8G"


class _PortTaken(Unavailable):
    """Somebody took a forward's port between our look and QEMU's bind: choose others."""


class QEMUDriver:
    """A `Driver`. `accelerator` finds out once what this host can do."""

    name = "qemu"
    taps: Literal["fd", "name"] = "fd"
    lazy_memory: Literal["file", "faults"] = "file"
    memory_by_faults = False

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator
        self._kernels = Kernels()

    async def check(self) -> str:
        machine = await self._accelerator.machine(None)
        how = "hardware KVM" if machine.accel == "kvm" else "software emulation"
        return f"QEMU {machine.version} with {how}"

    async def stamp(self, plan: LaunchPlan, wanted: Stamp | None = None) -> Stamp:
        machine = await self._accelerator.machine(plan.boot)
        cpu_model, cpu_flags = machine.guest_cpu
        return Stamp(
            vmm="QEMU",
            vmm_version=machine.version,
            machine=cmdline.MACHINE,
            accel=machine.accel,
            cpu_model=cpu_model,
            cpu_flags=cpu_flags,
            mem_mib=plan.mem_mib,
            vcpu_count=plan.vcpu_count,
            devices=cmdline.devices_digest(plan),
            kernel_digest=await self._kernels.digest(plan.boot.kernel),
            image_digest=plan.image_digest,
        )

    async def create_disk(self, base: Path | None, base_format: DiskFormat, disk: Path) -> None:
        args = ["qemu-img", "create", "-q", "-f", "qcow2"]
        args += ["-b", str(base), "-F", base_format, str(disk)] if base else [str(disk), _NEW_DISK]
        try:
            child = await asyncio.create_subprocess_exec(
                *args, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
            )
        except FileNotFoundError as error:
            raise Unsupported("qemu-img is not installed: apt-get install qemu-utils") from error
        _, stderr = await child.communicate()
        if child.returncode:
            disk.unlink(missing_ok=True)
            text = stderr.decode(errors="replace").strip()
            if "No space left" in text:
                raise Exhausted("the disk is full: no room for the VM's disk", detail=text)
            raise Internal("the VM's disk could not be made", detail=text)

    async def launch(self, plan: LaunchPlan) -> QEMU:
        plan.paths.memory.unlink(missing_ok=True)
        return await self._start(plan, incoming=False)

    async def restore(self, plan: LaunchPlan) -> QEMU:
        for path, what in ((plan.paths.memory, "memory"), (plan.paths.state, "device state")):
            if not path.is_file():
                raise Corrupt(f"the saved {what} is missing", detail=str(path))
        if plan.paths.memory.stat().st_size != plan.mem_mib * 1024 * 1024:
            raise Corrupt("the saved memory has the wrong size", detail=str(plan.paths.memory))
        return await self._start(plan, incoming=True)

    async def adopt(self, plan: LaunchPlan) -> QEMU | None:
        found = process.find(plan.paths)
        if found is None:
            return None
        qmp = await QMP.connect(plan.paths.qmp)
        reach = None
        if plan.net is not None and plan.net.tap_name is None:
            lines = parse_usernet(await qmp.monitor("info usernet"))
            forwards = {guest: host for state, host, guest in lines if state == "HOST_FORWARD"}
            reach = Reach(lambda: qmp, forwards, ())
        return QEMU(found, plan.paths, qmp, reach)

    async def kill_stray(self, paths: VMPaths) -> bool:
        found = process.find(paths)
        if found is None:
            return False
        await _end(found)
        return True

    async def _start(self, plan: LaunchPlan, *, incoming: bool) -> QEMU:
        """Start with free ports for the forwards, again with others if somebody was quicker."""
        machine = await self._accelerator.machine(plan.boot)
        for _ in range(_FORWARD_RACES):
            ready, forwards = _with_ports(plan)
            try:
                return await self._attempt(ready, machine, forwards, incoming=incoming)
            except _PortTaken:
                continue
        raise Exhausted("no free loopback port for the guest's network; see `hatchvm doctor`")

    async def _attempt(
        self, plan: LaunchPlan, machine: cmdline.Machine, forwards: dict[int, int], *, incoming: bool
    ) -> QEMU:
        paths = plan.paths
        try:
            child, state_fd = _spawn(plan, machine, incoming=incoming)
        except OSError as error:
            raise Exhausted("the VMM could not be started: no room, or no right", detail=repr(error)) from error
        qmp: QMP | None = None
        try:
            qmp = await QMP.connect(paths.qmp)
            await qmp.run("migrate-set-capabilities", capabilities=CAPABILITIES)
            if incoming:
                await _load(qmp, state_fd)
        except BaseException as error:
            if qmp is not None:
                qmp.close()
            code = await _end(child)
            if isinstance(error, HatchError):
                raise _start_error(error, child, code, incoming) from error
            raise
        reach = None
        if plan.net is not None and plan.net.tap_name is None:
            reach = Reach(lambda: qmp, forwards, plan.net.accepted)
        return QEMU(child, plan.paths, qmp, reach)


def _spawn(plan: LaunchPlan, machine: cmdline.Machine, *, incoming: bool) -> tuple[Process, int]:
    """The child, and the number under which it has inherited the device state."""
    with contextlib.ExitStack() as ours:
        state_fd = -1
        if incoming:
            state_fd = os.open(plan.paths.state, os.O_RDONLY | os.O_CLOEXEC)
            ours.callback(os.close, state_fd)
        listener = ours.enter_context(sockets.listen(plan.paths.qmp, backlog=1))
        argv = cmdline.argv(plan, machine, qmp_fd=listener.fileno(), incoming=incoming)
        inherited = [listener.fileno(), *([state_fd] if incoming else [])]
        if plan.net is not None and plan.net.tap_fd is not None:
            inherited.append(plan.net.tap_fd)
        return process.spawn(argv, plan.paths, pass_fds=inherited), state_fd


def _with_ports(plan: LaunchPlan) -> tuple[LaunchPlan, dict[int, int]]:
    """The plan with a host port for every forward that has none (0)."""
    if plan.net is None or plan.net.tap_name is not None:
        return plan, {}
    wanted: Mapping[int, int] = plan.net.forwards
    open_ports = iter(free_ports(sum(1 for host in wanted.values() if not host), avoid=wanted.values()))
    forwards = {guest: host or next(open_ports) for guest, host in wanted.items()}
    return replace(plan, net=replace(plan.net, forwards=forwards)), forwards


async def _load(qmp: QMP, state_fd: int) -> None:
    """Load device state from the inherited descriptor. Raises Corrupt if QEMU refuses it."""
    ended = qmp.event(lambda message: message["event"] == "MIGRATION" and message["data"]["status"] in _OVER)
    try:
        await qmp.run("migrate-incoming", uri=f"fd:{state_fd}")
        if (await ended)["data"]["status"] == "completed":
            return
    except (QMPError, Unavailable) as error:
        raise Corrupt("the saved device state could not be loaded", detail=error.detail) from error
    raise Corrupt("the saved device state could not be loaded")


_OVER: Final = ("completed", "failed", "cancelled")


async def _end(child: Process) -> int | None:
    child.signal(signal.SIGKILL)
    code = await asyncio.shield(tasks.spawn(child.wait(), name="end of a VMM"))
    child.forget()
    return code


def _start_error(error: HatchError, child: Process, code: int | None, incoming: bool) -> HatchError:
    """What a failed start means, by what QEMU wrote before it ended."""
    tail = child.log_tail()
    if "Could not set up host forwarding" in tail:
        return _PortTaken("a forward's port is taken", detail=tail)
    if "No space left" in tail:
        return Exhausted("the disk is full: no room for the VM's memory", detail=tail)
    if "Cannot allocate memory" in tail or "cannot set up guest memory" in tail:
        return Exhausted("the host has not enough memory for this VM", detail=tail)
    if incoming and isinstance(error, Corrupt):
        return Corrupt(error.message, detail=tail or error.detail)
    return Unsupported(f"the VMM did not start: {tail or error.message}", detail=f"exit code {code}")
