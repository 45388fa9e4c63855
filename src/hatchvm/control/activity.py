"""Who uses a VM now, and when somebody last did: one ledger a VM, for HTTP, SSH and the API alike."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime

from hatchvm.base.clock import Clock
from hatchvm.domain.lease import Lease


class Activity:
    """Plain attributes, written on every request and read by the idle monitor and by a suspend under way."""

    __slots__ = ("_drained", "arrivals", "held", "last_active_at", "leases", "now")

    def __init__(self, clock: Clock, last_active_at: datetime | None) -> None:
        self.now = clock.now
        self.last_active_at = last_active_at
        self.held: set[ActivityHold] = set()
        #: By id, as their rows are; those that have ended too, until the idle monitor has taken note.
        self.leases: dict[str, Lease] = {}
        #: Grows with everybody who comes to use the VM; a suspend that sees it grow takes itself back.
        self.arrivals = 0
        self._drained: asyncio.Event | None = None

    @property
    def holds(self) -> int:
        """How many requests, streams and sessions are open."""
        return len(self.held)

    def touch(self) -> datetime:
        """The VM is active now."""
        now = self.last_active_at = self.now()
        return now

    def want(self) -> datetime:
        """Somebody came for the VM."""
        self.arrivals += 1
        return self.touch()

    def touched(self, at: datetime) -> None:
        """It was active then, which may be a while ago."""
        if self.last_active_at is None or at > self.last_active_at:
            self.last_active_at = at

    async def drained(self, timeout_s: float) -> None:
        """Return when nobody holds the VM, or after the timeout."""
        if not self.held:
            return
        self._drained = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._drained.wait()
        self._drained = None

    def look_drained(self) -> None:
        """A hold was released."""
        if self._drained is not None and not self.held:
            self._drained.set()


class ActivityHold:
    """See `ports.gate.Hold`. Made for every HTTP request, so it is little more than its attributes."""

    __slots__ = ("_activity", "kind", "last_byte_at", "peer", "since")

    def __init__(self, activity: Activity, kind: str, peer: str) -> None:
        self._activity = activity
        self.kind = kind
        self.peer = peer
        activity.arrivals += 1
        activity.held.add(self)
        self.since = self.last_byte_at = activity.last_active_at = activity.now()

    def touch(self) -> None:
        self.last_byte_at = self._activity.touch()

    def touched(self, at: datetime) -> None:
        """Bytes flowed then, which may be a while ago."""
        self.last_byte_at = max(self.last_byte_at, at)
        self._activity.touched(at)

    def release(self) -> None:
        activity = self._activity
        if self in activity.held:
            activity.held.remove(self)
            activity.last_active_at = activity.now()
            if not activity.held:
                activity.look_drained()

    def drop(self) -> None:
        """Release it, but the VM was last active when it was last touched."""
        activity = self._activity
        if self in activity.held:
            activity.held.remove(self)
            activity.look_drained()
