"""From a VM to a connection with its SSH server."""

from __future__ import annotations

import socket
from typing import Final

from hatchvm.edge import reach
from hatchvm.ports.gate import Gate

GUEST_PORT: Final = 22


async def reach_sshd(gate: Gate, vm_id: str, *, peer: str, timeout_s: float) -> socket.socket:
    """A connected socket, for a client at `peer` who already holds the VM. Raises what `need` and `dial` do."""
    return await reach.reach(
        lambda: gate.need(vm_id, reason="ssh", timeout_s=timeout_s, by=peer),
        lambda: gate.dial(vm_id, GUEST_PORT, timeout_s=timeout_s),
    )
