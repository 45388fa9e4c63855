"""When a VM may sleep. Pure: time and activity come in, a verdict comes out."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from hatchvm.base.units import parse_duration
from hatchvm.domain.lease import Lease
from hatchvm.domain.lifecycle import State
from hatchvm.domain.vm import NEVER, VM


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to suspend now, and why (not)."""

    suspend: bool
    idle_s: float
    reason: str
    #: When it will have been idle for long enough if nobody comes; None: not by itself, and `reason` says why.
    due_at: datetime | None = None


def judge(
    vm: VM,
    *,
    last_active_at: datetime | None,
    now: datetime,
    default_timeout_s: float,
    routes: int,
    holds: int,
    leases: Collection[Lease] = (),
) -> Verdict:
    """The verdict for one VM.

    `holds`: open requests, streams and sessions that keep it awake. `leases`: ended ones too. Idle time counts from the
    newest activity, the end of a lease being one, or from creation if there was none.
    """
    ended = [lease.expires_at for lease in leases if not lease.lasts(now)]
    lasting = [lease.expires_at for lease in leases if lease.lasts(now)]
    since = max(filter(None, (last_active_at, vm.created_at, *ended)))
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
    due_at = max([since, *lasting]) + timedelta(seconds=timeout_s)
    if lasting:
        return Verdict(False, idle_s, f"{len(lasting)} lease{'s' * (len(lasting) > 1)}", due_at)
    if idle_s < timeout_s:
        return Verdict(False, idle_s, "not idle long enough", due_at)
    return Verdict(True, idle_s, "idle", due_at)


def first_check(due_at: datetime, *, next_check_at: datetime, interval_s: float) -> datetime:
    """When the monitor, which looks every `interval_s`, first finds that `due_at` has come."""
    behind_s = (due_at - next_check_at).total_seconds()
    if behind_s <= 0:
        return next_check_at
    return next_check_at + timedelta(seconds=math.ceil(behind_s / interval_s) * interval_s)
