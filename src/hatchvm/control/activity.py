"""Who uses a VM now, and when somebody last did: one ledger a VM, for HTTP, SSH and the API alike."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime

from hatchvm.base.clock import Clock
from hatchvm.domain.lease import Lease


class Activity:
    """Plain attributes, written on every request and read by the idle monitor and by a suspend under way."""

    __slots__ = ("_drained", "_now", "arrivals", "held", "last_active_at", "leases")

    def __init__(self, clock: Clock, last_active_at: datetime | None) -> None:
        self._now = clock.now
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
        now = self.last_active_at = self._now()
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

    def come(self, hold: ActivityHold) -> datetime:
        """Somebody came for the VM, and uses it until the hold is released."""
        self.arrivals += 1
        self.held.add(hold)
        now = self.last_active_at = self._now()
        return now

    def leave(self, hold: ActivityHold) -> None:
        """A hold is over. May be repeated."""
        if hold in self.held:
            self.held.remove(hold)
            self.last_active_at = self._now()
            if self._drained is not None:
                self._look_drained(self._drained)

    def drop(self, hold: ActivityHold) -> None:
        """A hold is over, and was for a while: that is no activity. May be repeated."""
        if hold in self.held:
            self.held.remove(hold)
            if self._drained is not None:
                self._look_drained(self._drained)

    def _look_drained(self, drained: asyncio.Event) -> None:
        if not self.held:
            drained.set()


class ActivityHold:
    """See `ports.gate.Hold`. Made for every HTTP request, so it is little more than its attributes."""

    __slots__ = ("_activity", "kind", "last_byte_at", "peer", "since")

    def __init__(self, activity: Activity, kind: str, peer: str) -> None:
        self._activity = activity
        self.kind = kind
        self.peer = peer
        self.since = self.last_byte_at = activity.come(self)

    def touch(self) -> None:
        self.last_byte_at = self._activity.touch()

    def touched(self, at: datetime) -> None:
        """Bytes flowed then, which may be a while ago."""
        self.last_byte_at = max(self.last_byte_at, at)
        self._activity.touched(at)

    def release(self) -> None:
        self._activity.leave(self)

    def drop(self) -> None:
        """Release it, but the VM was last active when it was last touched."""
        self._activity.drop(self)
