"""How many new connections may knock at one guest port at once.

A thousand clients may wait for a VM that just woke, and its little server may listen with a backlog of five:
unbounded, most of their connections would be dropped by the guest's kernel, to wait for a retransmission or, where it
answers with SYN cookies, for ever. A connection holds a slot until its first byte of answer, or its failure. A server
that answers others in the meantime is busy, and more connections would not help it; only when it has answered nobody
for a moment are its endpoints slow by nature, and give up their slots. After a longer time each of them does.
"""

from __future__ import annotations

import asyncio
from collections import deque

from hatchvm.edge.http.pool import Target


class Slot:
    """The right to knock. `leave` may be repeated."""

    def __init__(self, gate: _Queue) -> None:
        self._queue: _Queue | None = gate
        self._timer: asyncio.TimerHandle | None = None

    def leave_within(self, seconds: float, *, silence_s: float) -> None:
        """Leave by itself after that time, or earlier when no slot of the target was left for `silence_s`."""
        loop = asyncio.get_running_loop()
        self._look_again(loop.time() + silence_s, silence_s, loop.time() + seconds)

    def leave(self) -> None:
        queue, self._queue = self._queue, None
        if queue is None:
            return
        if self._timer:
            self._timer.cancel()
        queue.left_at = asyncio.get_running_loop().time()
        queue.left()

    def _look_again(self, moment: float, silence_s: float, last: float) -> None:
        self._timer = asyncio.get_running_loop().call_at(min(moment, last), self._look, silence_s, last)

    def _look(self, silence_s: float, last: float) -> None:
        queue, now = self._queue, asyncio.get_running_loop().time()
        if queue is None:
            return
        if now < min(last, queue.left_at + silence_s):
            self._look_again(queue.left_at + silence_s, silence_s, last)
        else:
            self._queue = None
            queue.left()


class Admission:
    """First come, first served, per target."""

    def __init__(self, *, slots: int) -> None:
        self._slots = slots
        self._queues: dict[Target, _Queue] = {}

    async def enter(self, target: Target) -> Slot:
        """Wait for a slot."""
        queue = self._queues.get(target)
        if queue is None:
            queue = self._queues[target] = _Queue(self._slots)
        await queue.turn()
        return Slot(queue)

    def sweep(self) -> None:
        """Forget targets nobody uses."""
        for target in [target for target, queue in self._queues.items() if queue.unused]:
            del self._queues[target]


class _Queue:
    def __init__(self, slots: int) -> None:
        self._free = slots
        self._taken = 0
        self.left_at = float("-inf")  # when a connection last answered or failed, in the loop's time
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def unused(self) -> bool:
        return not self._taken

    async def turn(self) -> None:
        if self._free:
            self._free -= 1
            self._taken += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.left()  # the slot was handed over before the cancellation: pass it on
            raise

    def left(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
        self._taken -= 1
