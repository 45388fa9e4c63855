"""The VMM port: starting virtual machine monitors, and holding a live one.

Two phases, two types: a `Driver` starts processes, a `Handle` is one that lives. A driver knows nothing of rows,
snapshots or policies. It runs inside one folder a VM (`VMPaths`) and keeps there whatever it needs to find the process
again after the daemon died.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from hatchvm.base.paths import VMPaths
from hatchvm.domain.image import Boot, DiskFormat
from hatchvm.domain.snapshot import Stamp

#: Numbers of pages of 4 KiB of a guest's memory.
Pages = npt.NDArray[np.uint32]


class Nest(Protocol):
    """A network namespace for one VMM that opens its TAP by name. Nobody else is in it, and nothing but that TAP."""

    async def lay(self, uid: int) -> None:
        """Make it, with a TAP in it that this user may open."""

    def inside(self) -> AbstractContextManager[None]:
        """The calling thread is in it: a process started there stays. Nothing may be awaited inside."""

    async def plug(self, pid: int) -> None:
        """The process has opened the TAP: connect it to the guests' network. From here on it ends with the process."""

    async def close(self) -> None:
        """Let go of it: it ends with the last process inside. A TAP that was never plugged is gone. May be repeated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetPlan:
    """The guest's network card.

    `forwards`: guest port -> port on the host's loopback that leads to it (0: any free one), open from the start.
    `accepted`: guest ports that had accepted before the suspend, so that nobody need prove them again after a wake.
    `tap_name`: the TAP that the card is plugged into, None on a private user network. A VMM that starts is given it as
    a descriptor to inherit (`tap_fd`) or, if its driver wants `taps` by name, in a `nest`.
    """

    guest_ip: str
    guest_mac: str
    forwards: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    accepted: frozenset[int] = frozenset()
    tap_name: str | None = None
    tap_fd: int | None = None
    nest: Nest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """Everything a VMM needs. The same plan must be given to `restore` as was given to `launch`, forwards aside."""

    vm_id: str
    paths: VMPaths
    boot: Boot
    boot_args: str
    image_digest: str
    vcpu_count: int
    mem_mib: int
    net: NetPlan | None
    has_seed: bool
    lazy: bool = False  # a pager serves the disk in `paths.lazy`, and memory as the driver wants it (`lazy_memory`)
    written_by: str | None = None  # the version of the VMM that wrote the state to be restored; None: this host's own


@dataclass(frozen=True, slots=True)
class Exit:
    """How a VMM process ended. `by_guest`: the guest shut itself down, or we asked the VMM to quit."""

    by_guest: bool
    reason: str  # one sentence; for a crash it carries the tail of the VMM's stderr


@dataclass(frozen=True, slots=True, kw_only=True)
class PutRight:
    """What was done for a guest after its wake. `done`: of `clock`, `random`; `undone`: the others -> why not."""

    done: tuple[str, ...] = ()
    undone: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


class Handle(Protocol):
    """One live VMM process. Every method may be repeated. All raise Unavailable if the process is gone."""

    @property
    def pid(self) -> int: ...

    @property
    def version(self) -> str:
        """What this process would write its state as, for a stamp: another version may be installed by now."""

    @property
    def accepted(self) -> frozenset[int]:
        """Guest ports that have accepted a connection since the guest booted."""

    async def pause(self) -> None:
        """Stop the vCPUs. Memory stays where it is."""

    async def resume(self) -> None:
        """Let the vCPUs run: after `pause`, after `restore`, and after `capture` too (a suspend taken back)."""

    async def capture(self) -> Pages | None:
        """Write device state to `paths.state` and flush the disk; the memory file is complete. Only while paused.

        Returns the pages that the guest may have written since the last capture or the restore, ascending; None if
        that is not known. After it the process holds nothing that the files do not have: `quit`, or `resume` and
        forget the state.
        Raises HatchError if the state could not be written; the guest is then still paused and can be resumed.
        """

    async def running(self) -> bool:
        """True if the vCPUs run."""

    async def put_right(self, *, again: bool, timeout_s: float) -> PutRight:
        """Tell a guest that was resumed what time it is, through its agent; what it cannot do is told, never raised.

        `again`: its memory may have run before, so it must not draw the random numbers it drew then.
        """

    async def power_button(self) -> None:
        """Ask the guest to shut down. Returns at once."""

    async def quit(self) -> None:
        """End the process, flushing disks, and wait for its end."""

    async def kill(self) -> None:
        """End the process without asking, and wait for its end. Never raises because it is gone already."""

    async def wait(self) -> Exit:
        """Return when the process has ended, however it ended. Notices within a second."""

    async def dial(self, port: int, *, patient_until: float, deadline: float) -> socket.socket:
        """A connected non-blocking TCP socket to the guest's `port`.

        Until the port has accepted once since the guest booted, the guest must accept: a refusal is tried again until
        `patient_until`, silence until `deadline` (both in seconds of the event loop's clock). Raises Upstream if the
        guest refuses, UpstreamTimeout if it is silent.
        """


class Driver(Protocol):
    """Starts VMM processes that outlive this daemon."""

    name: str
    #: How a card's TAP is handed to the VMM: see `NetPlan`.
    taps: Literal["fd", "name"]
    #: Where memory that is still in the object store is opened: a file in `paths.lazy`, or page faults that come to the
    #: socket `paths.faults` (see `hatchvm.pager`).
    lazy_memory: Literal["file", "faults"]
    #: Memory that is whole on this host is not opened as a file either, but comes by page faults to that socket.
    memory_by_faults: bool

    async def check(self) -> str:
        """Prove that a VM can start here; return a sentence about how. Raises Unsupported with what to install."""

    async def stamp(self, plan: LaunchPlan, wanted: Stamp | None = None) -> Stamp:
        """What a snapshot of a VM with this plan would depend on.

        `wanted`: that of a snapshot to be restored. Where several versions of the VMM are installed, the answer is for
        the one that can load it, if there is one.
        """

    async def create_disk(self, base: Path | None, base_format: DiskFormat, disk: Path) -> None:
        """Make a VM's writable disk over an image's, which is never written. Raises Exhausted on a full disk."""

    async def launch(self, plan: LaunchPlan) -> Handle:
        """Boot from the disk with fresh memory. The guest runs on return, or nothing is left behind."""

    async def restore(self, plan: LaunchPlan) -> Handle:
        """Load `paths.memory` and `paths.state`. The guest is paused on return, or nothing is left behind.

        The pair is not spent until `resume`: if this raises, or the process is killed before, it can be tried again.
        """

    async def adopt(self, plan: LaunchPlan) -> Handle | None:
        """The process an earlier daemon started for this VM, or None if it does not live. Never another's process."""

    async def kill_stray(self, paths: VMPaths) -> bool:
        """End a process that an earlier daemon left in `paths`, if any; True if there was one."""
