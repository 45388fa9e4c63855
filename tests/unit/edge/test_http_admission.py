"""Who may knock at a guest's port, and which connections wait for their next request."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest

from hatchvm.base.tasks import cancel_and_wait, spawn
from hatchvm.edge.http.admission import Admission, Slot
from hatchvm.edge.http.pool import Pool, Target
from hatchvm.edge.http.upstream import Upstream

PORT: Final = ("vm-app", 80)
OTHER: Final = ("vm-app", 81)


async def ask(admission: Admission) -> asyncio.Task[Slot]:
    """Queue for a slot."""
    task = spawn(admission.enter(PORT), name="ask")
    await asyncio.sleep(0)
    return task


async def test_slots_are_given_in_order() -> None:
    admission = Admission(slots=1)
    first = await admission.enter(PORT)
    second, third = await ask(admission), await ask(admission)
    await admission.enter(OTHER)
    first.leave()
    first.leave()
    (await second).leave()
    (await third).leave()
    await admission.enter(PORT)


async def test_nobody_passes_while_all_slots_are_taken() -> None:
    admission = Admission(slots=1)
    await admission.enter(PORT)
    waiting = await ask(admission)
    admission.sweep()
    assert not waiting.done()
    await cancel_and_wait(waiting)


async def test_whoever_gives_up_passes_the_slot_on() -> None:
    admission = Admission(slots=1)
    first = await admission.enter(PORT)
    waiting, chosen, last = await ask(admission), await ask(admission), await ask(admission)
    await cancel_and_wait(waiting)
    first.leave()  # the slot is on its way to `chosen`, who does not want it any more
    await cancel_and_wait(chosen)
    (await last).leave()
    await admission.enter(PORT)


async def test_a_slot_does_not_outlast_its_time() -> None:
    admission = Admission(slots=1)
    (await admission.enter(PORT)).leave_within(0, silence_s=0)
    await admission.enter(PORT)


class Listener:
    """An `upstream.User` that hears and does nothing."""

    def upstream_data(self, data: bytes) -> None: ...

    def upstream_eof(self) -> bool:
        return False

    def upstream_lost(self, *, broken: bool) -> None: ...

    def upstream_full(self, *, full: bool) -> None: ...


@pytest.mark.parametrize("event", ["first byte", "loss"])
async def test_a_connection_leaves_its_slot(event: str) -> None:
    admission = Admission(slots=1)
    upstream = Upstream(PORT, Pool(per_target=1), await admission.enter(PORT))
    upstream.user = Listener()
    waiting = await ask(admission)
    if event == "loss":
        upstream.connection_lost(None)
    else:
        upstream.data_received(b"H")
    await waiting


class Parked:
    """A connection, as far as the pool looks."""

    def __init__(self, target: Target = PORT) -> None:
        self.target = target
        self.idle_since = 0.0
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True


def pool_of(*connections: Parked) -> Pool[Parked]:
    pool: Pool[Parked] = Pool(per_target=2)
    for second, connection in enumerate(connections):
        pool.give(connection, now=float(second))
    return pool


def test_the_youngest_connection_is_taken() -> None:
    old, young = Parked(), Parked()
    pool = pool_of(old, young)
    assert pool.take(PORT, idle_since=0) is young
    assert pool.take(PORT, idle_since=1) is None
    assert pool.take(PORT, idle_since=0) is old
    assert pool.take(PORT, idle_since=0) is None


def test_a_dead_connection_is_not_handed_out() -> None:
    alive, dead = Parked(), Parked()
    pool = pool_of(alive, dead)
    dead.closing = True
    assert pool.take(PORT, idle_since=0) is alive


def test_too_many_are_closed() -> None:
    third = Parked()
    pool_of(Parked(), Parked(), third)
    assert third.closing


def test_old_ones_are_swept() -> None:
    old, young = Parked(), Parked()
    pool = pool_of(old, young)
    pool.sweep(idle_since=1)
    assert (old.closing, young.closing) == (True, False)
    assert pool.take(PORT, idle_since=0) is young


def test_only_the_vm_in_question_is_forgotten() -> None:
    first, second, other = Parked(), Parked(OTHER), Parked(("vm-other", 80))
    pool = pool_of(first, second, other)
    pool.forget("vm-app")
    assert (first.closing, second.closing, other.closing) == (True, True, False)


def test_a_discarded_one_is_not_handed_out() -> None:
    connection = Parked()
    pool = pool_of(connection)
    pool.discard(connection)
    pool.discard(connection)
    assert pool.take(PORT, idle_since=0) is None
