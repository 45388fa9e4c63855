"""The node port: what the control plane asks of the host agent. Control knows *that* and *where*; a node knows *how*.

One sequence at a time runs per VM: its owner sees to that. A sequence leaves the host as it was, or as asked.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from hatchvm.domain.image import Image
from hatchvm.domain.lifecycle import Found
from hatchvm.domain.snapshot import Snapshot
from hatchvm.domain.stored import Audit, Collected
from hatchvm.domain.vm import VM
from hatchvm.ports.vmm import Exit, PutRight

#: Called with (vm_id, exit) when a VMM process ends that nobody asked to end.
OnExit = Callable[[str, Exit], None]


@dataclass(frozen=True, slots=True)
class Suspended:
    """A finished suspend. `pause_s`: how long the guest stood still before it was safe to let it go."""

    pause_s: float


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a stored snapshot: before and after leaving out zeros and compressing."""

    size_bytes: int
    stored_bytes: int


class Node(Protocol):
    """Sequences over VMM, network, images and the snapshot engine of one host."""

    id: str

    async def prepare(self, vm: VM, image: Image, user_data: str | None) -> None:
        """Make the VM's folder, disk and seed. Leaves nothing behind if it raises."""

    async def boot(self, vm: VM, image: Image) -> None:
        """Start the guest from its disk; any saved memory is forgotten, unless there is no room to start at all."""

    async def suspend(self, vm: VM, image: Image, wanted: Callable[[], bool]) -> Suspended | None:
        """Pause, save, let the process go. None if `wanted()` became true before the last step: the guest runs on.

        If it raises, the guest runs on too, or the process is gone (then `OnExit` is called).
        """

    async def wake(self, vm: VM, image: Image, ports: Collection[int]) -> PutRight:
        """Resume from the saved pair; what was done for the guest before anybody may reach it.

        `ports`: guest ports that will be dialled. If it raises, the pair is intact.

        Raises Corrupt if there is no usable pair, Unsupported if it does not fit this host (see `Stamp`).
        """

    async def halt(self, vm_id: str, *, timeout_s: float) -> None:
        """Ask the guest to shut down, end the process after the timeout; the saved pair, if any, is dropped."""

    async def destroy(self, vm: VM) -> None:
        """End the process, remove every file of the VM and give up its address. May be repeated."""

    async def upload(self, vm: VM, snapshot: Snapshot, bases: Sequence[Snapshot]) -> Sizes:
        """Commit the saved pair to the object store. Cancelling it stops it within one block, committing nothing.

        `bases`: committed snapshots of the same image; what they hold is not stored again. The VM's newest comes first.
        """

    async def fetch(self, vm: VM, image: Image, source: Snapshot, *, lazily: bool) -> None:
        """Replace the VM's saved pair and disk by those of a committed snapshot; nothing unverified is ever used.

        Not `lazily`, that happens once every byte is here, and if it raises nothing has changed. Lazily, where this
        host can do it, what the VM had is given up at once, and the rest follows while the guest runs.
        """

    async def fetch_disk(self, vm: VM, image: Image, source: Snapshot) -> None:
        """Replace the VM's disk by that of a committed snapshot, whose memory need not fit; forget the saved pair.

        If it raises, nothing has changed. Raises Unsupported if the VM has another image.
        """

    async def saved(self, vm_id: str) -> bool:
        """Whether this host has a sound saved pair of the VM."""

    async def discard(self, snapshot: Snapshot) -> None:
        """Remove a snapshot; what only it needs goes later, see `collect`. May be repeated."""

    async def discard_all(self, vm_id: str) -> None:
        """Remove every snapshot of a VM."""

    async def committed(self, snapshot: Snapshot) -> Sizes | None:
        """The sizes if its manifest is in the object store, else None."""

    async def verify(self, snapshot: Snapshot) -> int:
        """Read all that is stored of a snapshot; bytes of its blocks and manifest. Raises Corrupt naming the object."""

    async def collect(self, grace_s: float | None, rows: Callable[[], Awaitable[Collection[str]]]) -> Collected:
        """Remove what no snapshot has needed for that long; None: the usual grace period.

        `rows` tells the ids of the snapshots that are said to be stored, whenever it is asked.

        Raises Conflict for a shorter one while a snapshot is being stored or restored, and Corrupt or Unsupported
        naming a snapshot that is missing or cannot be read: then nobody knows what it needs, and nothing is removed.
        """

    async def audit(self, rows: Collection[str]) -> Audit:
        """What is stored, and what is wrong with it. `rows`: ids of the snapshots that are said to be stored."""

    async def adopt(self, vm: VM, image: Image) -> Found:
        """Take back what still runs; a half-done suspend is undone, a half-done restore is ended."""

    async def sweep(self, known: Collection[VM]) -> list[str]:
        """Remove processes, folders and what the network has of VMs that are not in `known`; their ids."""

    async def dial(self, vm: VM, port: int, *, patient_until: float, deadline: float) -> socket.socket:
        """See `vmm.Handle.dial`. Raises Unavailable if no process runs."""

    async def ready(self) -> None:
        """Prove that VMs can start and snapshots be stored here, now. Raises HatchError with what is missing."""

    async def tidy(self) -> None:
        """Keep what running guests leave on the host within bounds. To be called every few seconds."""
