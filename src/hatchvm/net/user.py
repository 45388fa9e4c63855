"""Private user networks: the VMM itself is each guest's network, so there is nothing to do on the host."""

from __future__ import annotations

import socket
from collections.abc import Collection

from hatchvm.base.errors import Unsupported
from hatchvm.ports.network import Seat
from hatchvm.ports.vmm import Handle, Nest


class UserNetwork:
    """A `Network` that needs no right and leaves no trace. Guests' ports are reached through their VMM."""

    async def check(self) -> str:
        return "user-mode networking: every guest on a private network of its own"

    async def open(self) -> None:
        return

    async def attach(self, seat: Seat) -> int | None:
        return None

    async def nest(self, seat: Seat) -> Nest:
        raise Unsupported("Firecracker has no private user networks; start Hatch with HATCH_NETWORK=bridge")

    async def forget(self, seat: Seat) -> None:
        return

    async def sweep(self, known: Collection[Seat]) -> None:
        return

    async def dial(
        self, seat: Seat, handle: Handle, port: int, *, patient_until: float, deadline: float
    ) -> socket.socket:
        return await handle.dial(port, patient_until=patient_until, deadline=deadline)
