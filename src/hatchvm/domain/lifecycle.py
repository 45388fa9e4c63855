"""The states of a VM and every move between them. Nothing else in Hatch decides a state.

Stable states wait for somebody; a transitional one is heading for its `TARGET` and is always owned by exactly one
sequence. A daemon that starts and finds a transitional state knows that sequence was cut off; the host tells how far it
came (`recovered`).

    STARTING ──booted──▶ RUNNING ──suspend──▶ SUSPENDING ──suspended──▶ SNAPSHOTTED
                          ▲  ▲ ◀───resumed───────┘                        │      ▲
                          │  └────────woken──── RESTORING ◀───restore─────┘      │
                          │                         └────────aborted─────────────┘
    STOPPED ──start───────┘ (through STARTING)        RUNNING ──stop──▶ STOPPING ──halted──▶ STOPPED
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import Final

from hatchvm.base.errors import Conflict


class State(StrEnum):
    """Where a VM is."""

    STARTING = "starting"  # booting from its disk
    RUNNING = "running"  # the VMM process is alive and the guest runs
    SUSPENDING = "suspending"  # being paused and saved; can still be taken back
    SNAPSHOTTED = "snapshotted"  # asleep: no process, memory and disk kept
    RESTORING = "restoring"  # being woken
    STOPPING = "stopping"  # the guest was asked to shut down
    STOPPED = "stopped"  # no process, no memory; the disk remains
    DELETING = "deleting"  # its parts are being removed
    ERROR = "error"  # its state cannot be trusted; delete, start from disk, or restore a snapshot


#: States whose VM has no process. One that is being suspended may be resumed yet.
ENDED: Final = frozenset({State.SNAPSHOTTED, State.STOPPED, State.ERROR, State.DELETING})


class Event(StrEnum):
    """What happened to a VM."""

    BOOTED = "booted"
    SUSPEND = "suspend"
    SUSPENDED = "suspended"
    RESUMED = "resumed"  # the suspend was taken back or failed; the guest never noticed
    RESTORE = "restore"
    RESTORED = "restored"
    ABORTED = "aborted"  # the restore failed; the snapshot is untouched
    STOP = "stop"
    HALTED = "halted"
    START = "start"
    LOST = "lost"  # the VMM process ended by itself after the guest shut down
    FAIL = "fail"
    DELETE = "delete"


S, E = State, Event

#: Where each transitional state is heading. DELETING has no target: the row goes.
TARGET: Final = MappingProxyType(
    {S.STARTING: S.RUNNING, S.SUSPENDING: S.SNAPSHOTTED, S.RESTORING: S.RUNNING, S.STOPPING: S.STOPPED}
)

TRANSITIONS: Final = MappingProxyType(
    {
        (S.STARTING, E.BOOTED): S.RUNNING,
        (S.STARTING, E.FAIL): S.ERROR,
        (S.RUNNING, E.SUSPEND): S.SUSPENDING,
        (S.RUNNING, E.STOP): S.STOPPING,
        (S.RUNNING, E.LOST): S.STOPPED,
        (S.RUNNING, E.FAIL): S.ERROR,
        (S.SUSPENDING, E.SUSPENDED): S.SNAPSHOTTED,
        (S.SUSPENDING, E.RESUMED): S.RUNNING,
        (S.SUSPENDING, E.LOST): S.STOPPED,
        (S.SUSPENDING, E.FAIL): S.ERROR,
        (S.SNAPSHOTTED, E.RESTORE): S.RESTORING,
        (S.SNAPSHOTTED, E.STOP): S.STOPPING,
        (S.RESTORING, E.RESTORED): S.RUNNING,
        (S.RESTORING, E.ABORTED): S.SNAPSHOTTED,
        (S.RESTORING, E.HALTED): S.STOPPED,
        (S.RESTORING, E.FAIL): S.ERROR,
        (S.STOPPING, E.HALTED): S.STOPPED,
        (S.STOPPING, E.FAIL): S.ERROR,
        (S.STOPPED, E.START): S.STARTING,
        (S.STOPPED, E.RESTORE): S.RESTORING,
        (S.ERROR, E.START): S.STARTING,
        (S.ERROR, E.RESTORE): S.RESTORING,
        **{(s, E.DELETE): S.DELETING for s in State},
    }
)

#: What a user sees (SPECIFICATION: six public states and `starting`): a suspend can still be taken back, so such a
#: VM is running; a restore can still fall back, so such a VM is snapshotted.
PUBLIC: Final = MappingProxyType(
    {
        S.STARTING: "starting",
        S.RUNNING: "running",
        S.SUSPENDING: "running",
        S.SNAPSHOTTED: "snapshotted",
        S.RESTORING: "snapshotted",
        S.STOPPING: "stopping",
        S.STOPPED: "stopped",
        S.DELETING: "stopping",
        S.ERROR: "error",
    }
)


def advance(state: State, event: Event) -> State:
    """The state after `event`. Raises Conflict if `state` forbids it."""
    after = TRANSITIONS.get((state, event))
    if after is None:
        raise Conflict(f'vm is in state "{PUBLIC[state]}"; it cannot {_VERB.get(event, event.value)} now')
    return after


_VERB: Final = MappingProxyType(
    {E.SUSPEND: "be snapshotted", E.RESTORE: "be restored", E.STOP: "be stopped", E.START: "be started"}
)


class Found(StrEnum):
    """What a restarted daemon finds of a VM on its host."""

    RUNNING = "running"  # the process lives and was adopted
    SAVED = "saved"  # no process; memory, state and disk are a usable pair
    DISK = "disk"  # no process and no usable memory: only the disk


def recovered(row: State, found: Found, *, stored: bool) -> tuple[State, str]:
    """(state, reason) of a VM after a restart. The host is believed, the row tells what was intended.

    `stored`: the VM's newest snapshot is committed to the object store, so a sleeping VM needs nothing on this host.
    A VM that was being stopped or was at rest must have no process: the caller has ended it.
    """
    if row in (S.STOPPING, S.STOPPED):
        return S.STOPPED, ""
    if row in (S.DELETING, S.ERROR):
        return row, ""
    if found is Found.RUNNING:
        return S.RUNNING, ""
    if row is S.STARTING:
        return S.ERROR, "Hatch ended while the VM was starting; start it again"
    if found is Found.SAVED or (stored and row in (S.SNAPSHOTTED, S.RESTORING)):
        return S.SNAPSHOTTED, ""
    if row in (S.SNAPSHOTTED, S.RESTORING):
        return S.STOPPED, "its saved memory was lost with the host before it was stored; start it to boot from its disk"
    return (
        S.STOPPED,
        "its process was gone when Hatch started (killed, or the host rebooted); start it to boot its disk",
    )
