"""The only caller of `asyncio.create_task`: named tasks, kept alive, whose failures are never silent.

One of the three places that may catch `Exception` (the others: the request boundary and the undo stack).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_log = logging.getLogger(__name__)
_running: set[asyncio.Task[Any]] = set()


def spawn(work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
    """Start `work` as a task that cannot be garbage-collected; an unretrieved failure is logged with its name."""
    task = asyncio.create_task(work, name=name)
    _running.add(task)
    task.add_done_callback(_running.discard)
    return task


def supervise(work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
    """Like `spawn`, for work nobody awaits: a failure is logged as a bug and the task ends."""

    async def guarded() -> None:
        try:
            await work
        except Exception:
            _log.exception("background task failed", extra={"task": name})

    return spawn(guarded(), name=name)


async def cancel_and_wait(task: asyncio.Task[Any]) -> None:
    """Cancel `task` and return when it has ended, whatever its outcome; the caller's own cancellation passes."""
    task.cancel()
    await asyncio.wait([task])


async def finish(work: Coroutine[Any, Any, T], *, name: str) -> T:
    """Await `work` to its end even if cancelled meanwhile, however often; the cancellation is raised after it."""
    task = spawn(work, name=name)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        raise
