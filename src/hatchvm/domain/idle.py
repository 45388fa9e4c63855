"""When a VM may sleep. Pure: time and activity come in, a verdict comes out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from hatchvm.base.units import parse_duration
from hatchvm.domain.lifecycle import State
from hatchvm.domain.vm import NEVER, VM


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to suspend now, and why (not)."""

    suspend: bool
    idle_s: float
    reason: str


def judge(
    vm: VM,
    *,
    last_active_at: datetime | None,
    now: datetime,
    default_timeout_s: float,
    routes: int,
    holds: int,
) -> Verdict:
    """The verdict for one VM.

    `holds`: open requests, streams and sessions that keep it awake. Idle time counts from the newest activity, or from
    creation if there was none.
    """
    since = max(filter(None, (last_active_at, vm.created_at)))
    idle_s = max(0.0, (now - since).total_seconds())
    if vm.state is not State.RUNNING:
        return Verdict(False, idle_s, "not running")
    if routes == 0:
        return Verdict(False, idle_s, "no routes")
    if vm.spec.idle_timeout == NEVER:
        return Verdict(False, idle_s, "idle_timeout is never")
    if holds:
        return Verdict(False, idle_s, f"{holds} open connections")
    own = vm.spec.idle_timeout
    timeout_s = default_timeout_s if own is None else parse_duration(own)
    if idle_s < timeout_s:
        return Verdict(False, idle_s, "not idle long enough")
    return Verdict(True, idle_s, "idle")
