"""How much trouble a peer may be: a purse that time and useful work fill and useless frames empty."""

from __future__ import annotations


class Budget:
    """At most `capacity`, full at first; `per_s` comes back with time. Pure: time is told by `tick`."""

    def __init__(self, *, capacity: float, per_s: float) -> None:
        self._capacity = capacity
        self._per_s = per_s
        self._left = capacity
        self._at_s: float | None = None

    def tick(self, now: float) -> None:
        """It is `now` (monotonic seconds)."""
        if self._at_s is not None:
            self.earn((now - self._at_s) * self._per_s)
        self._at_s = now

    def earn(self, amount: float) -> None:
        self._left = min(self._capacity, self._left + amount)

    def spend(self, amount: float) -> bool:
        """False: there was not enough."""
        self._left -= amount
        return self._left >= 0
