"""Time as a parameter: whatever needs the time takes a `Clock`, so tests own it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import partial
from typing import Protocol


class Clock(Protocol):
    """Wall time for records, monotonic time for durations."""

    def now(self) -> datetime:
        """Aware UTC wall time."""

    def monotonic(self) -> float:
        """Seconds from an arbitrary start, never going back."""


class SystemClock:
    """The host's clocks."""

    # Read several times for every request: no call of ours around them.
    now = staticmethod(partial(datetime.now, UTC))
    monotonic = staticmethod(time.monotonic)


def rfc3339(moment: datetime) -> str:
    """`2026-03-06T14:30:00Z`, whole seconds, UTC: the form every answer of the API uses."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
