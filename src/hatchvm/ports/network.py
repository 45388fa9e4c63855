"""The network port: where a guest's card is plugged in, and how its ports are reached from this host.

A VM keeps to the network it was created on: the guest's memory remembers its address. Every method may be repeated;
all raise Unsupported with what to install or allow, Unavailable if the host refuses.
"""

from __future__ import annotations

import socket
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from hatchvm.ports.vmm import Handle, Nest


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A VM's place on the network. `tap_name` is None on a private user network, which each VM has for itself."""

    vm_id: str
    guest_ip: str
    guest_mac: str
    tap_name: str | None


class Network(Protocol):
    """One way of connecting guests."""

    async def check(self) -> str:
        """Prove that guests can be connected here; return a sentence about how."""

    async def open(self) -> None:
        """Put into place what all guests share. What an earlier daemon left is taken over, and put right."""

    async def attach(self, seat: Seat) -> int | None:
        """Connect a guest that is about to start: a descriptor of its TAP, the caller's to close, or None.

        The connection ends with the last copy of the descriptor, so nothing has to be taken away after a VMM.
        """

    async def nest(self, seat: Seat) -> Nest:
        """As `attach`, for a guest whose VMM opens its TAP by name. Raises Unsupported where that is not possible."""

    async def forget(self, seat: Seat) -> None:
        """The VM is deleted: its address may be given to another."""

    async def sweep(self, known: Collection[Seat]) -> None:
        """Remove what belongs to VMs that are not in `known`, and put into place what those that are need."""

    async def dial(
        self, seat: Seat, handle: Handle, port: int, *, patient_until: float, deadline: float
    ) -> socket.socket:
        """A connected non-blocking TCP socket to the guest's `port`: see `vmm.Handle.dial` for patience and errors."""
