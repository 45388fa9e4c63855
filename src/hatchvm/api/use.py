"""What clients get about the use of a VM: what keeps it awake, what woke it, when it will sleep."""

from __future__ import annotations

from dataclasses import asdict
from typing import Literal

from pydantic import BaseModel

from hatchvm.api.answers import time_answer
from hatchvm.base.clock import rfc3339
from hatchvm.domain.activity import Holding
from hatchvm.domain.lease import Lease
from hatchvm.domain.lifecycle import PUBLIC
from hatchvm.ports.house import Use, Woken


class LeaseAnswer(BaseModel):
    """A hold: its VM is not suspended by itself before `expires_at`."""

    id: str
    vm_id: str
    reason: str
    created_at: str
    expires_at: str


class HoldingAnswer(BaseModel):
    """One reason why a VM is awake.

    `http` and `ssh` are connections from `peer`; `since` is null for one that does not go through Hatch. `lease` is a
    hold with an `id`, a `reason` and an end.
    """

    kind: Literal["http", "ssh", "lease"]
    since: str | None
    last_byte_at: str | None
    peer: str
    reason: str
    ends_at: str | None
    id: str | None


class PutRightAnswer(BaseModel):
    """What was put right in the guest after its wake: of `clock` and `random`; `undone`: the others, and why."""

    done: list[str]
    undone: dict[str, str]


class WokenAnswer(BaseModel):
    """A wake: `reason` is one of `http`, `ssh`, `api`; `by` is the address that asked."""

    at: str
    reason: str
    by: str
    seconds: float
    put_right: PutRightAnswer


class SleepsAnswer(BaseModel):
    """When the VM will be suspended if nobody comes; `at` is null if it will not be, and `because` says why."""

    at: str | None
    because: str | None


class ActivityAnswer(BaseModel):
    """Why a VM is awake, why it woke, when it will sleep. `holds`: the oldest first, at most 100 of `hold_count`."""

    state: str
    last_active_at: str | None
    idle_seconds: float
    idle_timeout: str
    hold_count: int
    holds: list[HoldingAnswer]
    last_wake: WokenAnswer | None
    sleeps: SleepsAnswer


def lease_answer(lease: Lease) -> LeaseAnswer:
    return LeaseAnswer(
        id=lease.id,
        vm_id=lease.vm_id,
        reason=lease.reason,
        created_at=rfc3339(lease.created_at),
        expires_at=rfc3339(lease.expires_at),
    )


def activity_answer(use: Use) -> ActivityAnswer:
    return ActivityAnswer(
        state=PUBLIC[use.state],
        last_active_at=time_answer(use.last_active_at),
        idle_seconds=round(use.idle_s, 3),
        idle_timeout=use.idle_timeout,
        hold_count=use.hold_count,
        holds=[_holding_answer(hold) for hold in use.holds],
        last_wake=None if use.last_wake is None else _woken_answer(use.last_wake),
        sleeps=SleepsAnswer(at=time_answer(use.sleeps_at), because=use.awake_because or None),
    )


def _holding_answer(hold: Holding) -> HoldingAnswer:
    moments = {name: time_answer(getattr(hold, name)) for name in ("since", "last_byte_at", "ends_at")}
    return HoldingAnswer.model_validate(asdict(hold) | moments)


def _woken_answer(woken: Woken) -> WokenAnswer:
    put_right = PutRightAnswer(done=list(woken.put_right.done), undone=dict(woken.put_right.undone))
    return WokenAnswer(
        at=rfc3339(woken.at),
        reason=woken.reason,
        by=woken.by,
        seconds=round(woken.seconds, 3),
        put_right=put_right,
    )
