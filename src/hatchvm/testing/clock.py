"""Time that a test moves: a `Clock`, and the event loop's timers with it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Final

_START: Final = datetime(2026, 1, 1, tzinfo=UTC)
_TICK: Final = timedelta(microseconds=1)


class SteeredClock:
    """A `Clock` that stands still but for a microsecond a look, so that no two moments are equal.

    `advance` moves the running loop's timers too: a back-off or a timeout ends when the test says so.
    """

    def __init__(self) -> None:
        self._now = _START
        self._passed_s = 0.0

    def now(self) -> datetime:
        self._now += _TICK
        return self._now

    def monotonic(self) -> float:
        return self._passed_s

    def advance(self, seconds: float) -> None:
        self._passed_s += seconds
        self._now += timedelta(seconds=seconds)
        loop = asyncio.get_running_loop()
        time = loop.time
        loop.time = lambda: time() + seconds  # type: ignore[method-assign]
        loop.call_soon(lambda: None)
