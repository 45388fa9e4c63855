"""Connections to guests that wait for their next request.

A plain list per (vm, port), youngest last: taking and giving back is a `pop` and an `append`. A connection that dies
here takes itself out; one that is older than the limit is closed by `sweep`. Connections never outlive their VMM
process, because they end in it; `forget` only makes that certain.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeAlias, TypeVar

#: (vm id, guest port)
Target: TypeAlias = tuple[str, int]


class Poolable(Protocol):
    """What the pool needs of a connection."""

    target: Target
    idle_since: float  # monotonic seconds

    def is_closing(self) -> bool:
        """True: it can carry nothing more."""

    def close(self) -> None: ...


C = TypeVar("C", bound=Poolable)


class Pool(Generic[C]):
    """`per_target`: how many wait at most for one port; the rest is closed."""

    def __init__(self, *, per_target: int) -> None:
        self._per_target = per_target
        self._idle: dict[Target, list[C]] = {}

    def take(self, target: Target, idle_since: float) -> C | None:
        """The youngest live connection, if it came back at `idle_since` (monotonic seconds) or later."""
        idle = self._idle.get(target)
        while idle:
            connection = idle[-1]
            if connection.idle_since < idle_since:
                return None
            idle.pop()
            if not connection.is_closing():
                return connection
        return None

    def give(self, connection: C, now: float) -> None:
        """Take back a connection whose exchange is over."""
        idle = self._idle.get(connection.target)
        if idle is None:
            idle = self._idle[connection.target] = []
        if connection.is_closing() or len(idle) >= self._per_target:
            connection.close()
            return
        connection.idle_since = now
        idle.append(connection)

    def discard(self, connection: C) -> None:
        """It died, or said something nobody asked for."""
        idle = self._idle.get(connection.target)
        if idle and connection in idle:
            idle.remove(connection)

    def sweep(self, *, idle_since: float) -> None:
        """Close what came back before `idle_since`, and forget empty targets."""
        for target, idle in list(self._idle.items()):
            keep = [connection for connection in idle if connection.idle_since >= idle_since]
            self._drop(idle[: len(idle) - len(keep)])
            if keep:
                self._idle[target] = keep
            else:
                del self._idle[target]

    def forget(self, vm_id: str) -> None:
        """Close every connection to a VM."""
        for target in [target for target in self._idle if target[0] == vm_id]:
            self._drop(self._idle.pop(target))

    def close(self) -> None:
        """Close every connection."""
        self.sweep(idle_since=float("inf"))

    @staticmethod
    def _drop(connections: list[C]) -> None:
        for connection in connections:
            connection.close()
