"""Whether a request may go to its VM at once, must wait, or is turned away."""

from __future__ import annotations

from typing import Final

from hatchvm.base.errors import Unavailable, Upstream
from hatchvm.domain.lifecycle import PUBLIC, State

#: States that lead to running by themselves or by a wake: the request waits.
_WAITS: Final = frozenset({State.STARTING, State.SUSPENDING, State.SNAPSHOTTED, State.RESTORING})


def is_open(state: State, *, addressed: bool, auto_wake: bool) -> bool:
    """True: the VM runs. False: it will. `addressed`: it has a guest IP; `auto_wake`: the route may wake it.

    Raises the error its client must get: see `ports.gate.Gate.ready`.
    """
    if not addressed:
        raise Upstream("vm has no guest IP")
    if state is State.RUNNING:
        return True
    if state is State.SNAPSHOTTED and not auto_wake:
        raise Unavailable("vm is snapshotted and auto-wake is disabled")
    if state not in _WAITS:
        raise Unavailable(f'vm is in state "{PUBLIC[state]}", not proxying')
    return False
