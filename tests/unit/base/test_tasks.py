"""Tasks: kept alive, finished though cancelled, never failing in silence."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref

import pytest

from hatchvm.base import tasks


async def turns() -> None:
    """Let everybody who can go on go on."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_task_that_nobody_keeps_is_not_collected() -> None:
    holders: list[weakref.ref[asyncio.Future[None]]] = []
    done = asyncio.Event()

    async def work() -> None:
        future = asyncio.get_running_loop().create_future()
        holders.append(weakref.ref(future))
        await future
        done.set()

    tasks.spawn(work(), name="work")
    await turns()
    gc.collect()
    future = holders[0]()
    assert future is not None
    future.set_result(None)
    await done.wait()


@pytest.mark.parametrize("cancellations", [1, 3])
async def test_work_that_must_be_finished_is_finished_however_often_it_is_cancelled(cancellations: int) -> None:
    go, done = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        await go.wait()
        done.set()

    asking = tasks.spawn(tasks.finish(work(), name="work"), name="ask")
    for _ in range(cancellations):
        await turns()
        asking.cancel()
    await turns()
    assert not asking.done()
    go.set()
    await asyncio.wait([asking])
    assert done.is_set()
    assert asking.cancelled()


async def test_finishing_hands_on_the_outcome() -> None:
    async def answer(number: int) -> int:
        if number < 0:
            raise LookupError(number)
        return number

    assert await tasks.finish(answer(7), name="answer") == 7
    with pytest.raises(LookupError):
        await tasks.finish(answer(-1), name="answer")


async def test_a_background_failure_is_logged_with_its_task(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise LookupError("nobody hears this")

    await tasks.supervise(fail(), name="sweeper")
    (record,) = caplog.records
    assert (record.levelno, record.__dict__["task"]) == (logging.ERROR, "sweeper")
    assert record.exc_info is not None
    assert record.exc_info[0] is LookupError


async def test_a_cancelled_background_task_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def wait() -> None:
        await asyncio.Event().wait()

    task = tasks.supervise(wait(), name="sweeper")
    await turns()
    await tasks.cancel_and_wait(task)
    assert task.cancelled()
    assert not caplog.records


async def test_ending_a_task_waits_for_it_whatever_its_outcome() -> None:
    ended = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await turns()
            ended.set()
            raise LookupError

    task = tasks.spawn(stubborn(), name="stubborn")
    await turns()
    await tasks.cancel_and_wait(task)
    assert ended.is_set()
    assert isinstance(task.exception(), LookupError)
