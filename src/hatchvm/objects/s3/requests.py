"""Requests in threads: how many at once, how often again, and what of a cancelled one goes on.

Sixteen threads of their own are the bound on requests in flight, and so on connections and memory. A thread that
waits for a server cannot be cancelled: a cancelled read is left to end by itself and its bytes are dropped, a
cancelled upload breaks off before its next 256 KiB. The pause between two attempts holds no thread.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from hatchvm.objects.s3.control import CONNECTIONS
from hatchvm.objects.s3.faults import Fault, Foreign, fault_of

T = TypeVar("T")

#: With the pauses of `Requests`, a store that refuses at once is given up after four to six seconds.
ATTEMPTS: Final = 6
_LONGEST_PAUSE_S: Final = 10.0
_NEVER: Final = threading.Event()


class Requests:
    """Requests to one bucket. `first_pause_s`: before the second attempt, doubled before each one after it."""

    def __init__(self, bucket: str, first_pause_s: float) -> None:
        self._bucket = bucket
        self._first_pause_s = first_pause_s
        self._threads = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="s3")

    async def ask(
        self,
        verb: str,
        key: str,
        call: Callable[[], T],
        *,
        attempts: int = ATTEMPTS,
        abandoned: threading.Event = _NEVER,
    ) -> T:
        """What `call` returns. Raises what `faults` makes of its failure; a transient one only after `attempts`.

        Once `abandoned` is set, the first failure ends it.
        """
        attempt = 1
        while True:
            outcome = await asyncio.wrap_future(self._threads.submit(self._attempt, verb, key, call))
            if not isinstance(outcome, Fault):
                return outcome
            if not outcome.transient or attempt >= attempts or abandoned.is_set():
                raise outcome.error
            await asyncio.sleep(pause_s(attempt, self._first_pause_s, random.random()))
            attempt += 1

    def _attempt(self, verb: str, key: str, call: Callable[[], T]) -> T | Fault:
        """A value and not a raise: the foreign error, which may hold a signed URL, must not be found as a context."""
        try:
            return call()
        except Foreign as error:
            return fault_of(error, verb=verb, key=key, bucket=self._bucket)


def pause_s(attempt: int, first_s: float, chance: float) -> float:
    """Before attempt `attempt` + 1: doubling, and between half and all of it, so that many clients drift apart."""
    return float(min(first_s * 2 ** (attempt - 1), _LONGEST_PAUSE_S)) * (0.5 + chance / 2)
