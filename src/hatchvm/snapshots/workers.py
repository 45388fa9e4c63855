"""Two threads for hashing and compressing, and the few rules of cancellation the engine is built on.

A thread cannot be cancelled, only asked: work gets an event, looks at it between two blocks, and whoever started it
waits until it has let go of its files. So when a call of the engine has ended, nothing of it still reads or writes
them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from hatchvm.base.tasks import spawn

T = TypeVar("T")

#: Stops work: once it is set nobody wants the result.
Stop = threading.Event

_THREADS: Final = 2


class Workers:
    """A pool shared by all snapshots of an engine, so that ten uploads load the host like one."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="snapshots")

    async def run(self, work: Callable[[Stop], T]) -> T:
        """`work(stop)` in a thread. When cancelled, sets `stop` and returns only when the thread is done with it."""
        stop = Stop()
        job = self._pool.submit(work, stop)
        future = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            stop.set()
            if not job.cancel():
                await outlast([future])
            raise


async def run_all(jobs: Iterable[Coroutine[Any, Any, None]], *, width: int, name: str) -> None:
    """Run every job, at most `width` at once. At the first failure the others are cancelled and waited for."""
    running: set[asyncio.Task[None]] = set()
    try:
        for job in jobs:
            running.add(spawn(job, name=name))
            if len(running) == width:
                running = await _some_done(running, asyncio.FIRST_COMPLETED)
        if running:
            running = await _some_done(running, asyncio.FIRST_EXCEPTION)
    finally:
        for task in running:
            task.cancel()
        await outlast(running)


async def _some_done(running: set[asyncio.Task[None]], when: str) -> set[asyncio.Task[None]]:
    """Those still running. Raises what one of the others raised."""
    done, rest = await asyncio.wait(running, return_when=when)
    for task in done:
        task.result()
    return rest


async def outlast(futures: Collection[asyncio.Future[Any]]) -> int:
    """Wait until all are done, whatever their outcome, even while being cancelled; how often that happened."""
    cancels = 0
    while waiting := [future for future in futures if not future.done()]:
        try:
            await asyncio.wait(waiting)
        except asyncio.CancelledError:
            cancels += 1
    for future in futures:
        if not future.cancelled():
            future.exception()  # seen: it must not be reported as forgotten
    return cancels
