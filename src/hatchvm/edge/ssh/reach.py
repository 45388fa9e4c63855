"""From a VM to a connection with its SSH server: woken if need be, dialled when it runs."""

from __future__ import annotations

import socket
from typing import Final

from hatchvm.base.errors import Unavailable
from hatchvm.ports.gate import Gate

GUEST_PORT: Final = 22
#: How often a VM may fall asleep again between its wake and the connection.
_MAX_RELAPSES: Final = 2


async def reach(gate: Gate, vm_id: str, *, peer: str, timeout_s: float) -> socket.socket:
    """A connected socket, for a client at `peer` who already holds the VM. Raises what `need` and `dial` do."""
    relapses = 0
    while True:
        await gate.need(vm_id, reason="ssh", timeout_s=timeout_s, by=peer)
        try:
            return await gate.dial(vm_id, GUEST_PORT, timeout_s=timeout_s)
        except Unavailable:
            if relapses == _MAX_RELAPSES:
                raise
            relapses += 1
