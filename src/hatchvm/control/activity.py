"""Who uses a VM now, and when somebody last did: one ledger a VM, for HTTP, SSH and the API alike."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime

from hatchvm.base.clock import Clock


class Activity:
    """Plain attributes, written on every request and read by the idle monitor and by a suspend under way."""

    __slots__ = ("_clock", "_drained", "arrivals", "holds", "last_active_at")

    def __init__(self, clock: Clock, last_active_at: datetime | None) -> None:
        self._clock = clock
        self.last_active_at = last_active_at
        self.holds = 0
        #: Grows with everybody who comes to use the VM; a suspend that sees it grow takes itself back.
        self.arrivals = 0
        self._drained: asyncio.Event | None = None

    def touch(self) -> None:
        self.last_active_at = self._clock.now()

    def want(self) -> None:
        """Somebody came for the VM."""
        self.arrivals += 1
        self.touch()

    async def drained(self, timeout_s: float) -> None:
        """Return when nobody holds the VM, or after the timeout."""
        if not self.holds:
            return
        self._drained = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._drained.wait()
        self._drained = None

    def unhold(self) -> None:
        self.holds -= 1
        self.touch()
        if not self.holds and self._drained is not None:
            self._drained.set()

    def hold(self) -> ActivityHold:
        return ActivityHold(self)


class ActivityHold:
    """See `ports.gate.Hold`."""

    __slots__ = ("_activity", "_released")

    def __init__(self, activity: Activity) -> None:
        self._activity = activity
        self._released = False
        activity.want()
        activity.holds += 1

    def touch(self) -> None:
        self._activity.touch()

    def release(self) -> None:
        if not self._released:
            self._released = True
            self._activity.unhold()
