"""The daemon's side of one worker, which is played by the test: what it is told, and what it may say."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from hatchvm.base.clock import SystemClock
from hatchvm.domain.lifecycle import State
from hatchvm.edge.http.workers import wire
from hatchvm.edge.http.workers.channel import pair
from hatchvm.edge.http.workers.wire import (
    Cancel,
    Come,
    Counts,
    Dial,
    Done,
    Failed,
    Gone,
    Left,
    Need,
    Order,
    Report,
    Routes,
    Serve,
    Serving,
    Settings,
    Unable,
    Used,
    VMs,
)
from hatchvm.server.workers.link import Link
from hatchvm.testing.edge.workers import FedGate

SETTINGS = Settings("127.0.0.1", 1, ["hatch.local"], 30, 900, 8, 0, None, "warning", "json")
VM = "vm-app"


class Played:
    """A worker whose lines the test says, and the link to it."""

    def __init__(self) -> None:
        ours, self._sock = pair()
        self._sock.setblocking(False)
        self.gate = FedGate()
        self.counted: list[Counts] = []
        self.link = Link(ours, self.gate, self.gate, SystemClock(), counts=self.counted.append)

    def say(self, *reports: Report) -> None:
        for report in reports:
            self._sock.send(wire.encode(report))

    async def next(self) -> Order:
        packet = await asyncio.get_running_loop().sock_recv(self._sock, wire.MAX_BYTES)
        return wire.order(packet)

    async def until_serve(self) -> list[Order]:
        """What it is told up to `Serve`."""
        told: list[Order] = []
        while not isinstance(order := await self.next(), Serve):
            told.append(order)
        return told

    def take(self) -> socket.socket:
        """The socket of the next packet, which has come."""
        _, fds, _, _ = socket.recv_fds(self._sock, wire.MAX_BYTES, 1)
        return socket.socket(fileno=fds[0])

    def hang_up(self) -> None:
        self._sock.close()


@pytest.fixture
async def worker() -> AsyncIterator[Played]:
    played = Played()
    played.gate.add("app", 1)
    yield played
    played.link.close()
    played.hang_up()
    assert not +played.gate.holds


async def test_settings_come_first_and_the_table_before_serve(worker: Played) -> None:
    for number in range(350):
        worker.gate.add(f"s{number}", 1)
    worker.link.begin(SETTINGS)
    settings, *table = await worker.until_serve()
    assert settings == SETTINGS
    vms = [row.vm_id for order in table if isinstance(order, VMs) for row in order.rows]
    routes = [row.subdomain for order in table if isinstance(order, Routes) for row in order.rows]
    assert (len(vms), len(set(vms)), len(routes), len(set(routes))) == (351, 351, 351, 351)


async def test_a_change_made_while_the_table_is_told_is_told_after_it(worker: Played) -> None:
    for number in range(350):
        worker.gate.add(f"s{number}", 1)
    worker.link.begin(SETTINGS)
    await worker.next()
    route = worker.gate.routes["s349"]
    worker.gate.move(route.vm_id, State.STOPPED)
    worker.gate.put(replace(route, target_port=81))
    worker.gate.remove(worker.gate.routes["s0"])
    told = await worker.until_serve()
    rows = [row for order in told if isinstance(order, Routes) for row in order.rows if row.id == route.id]
    assert rows[-1].target_port == 81
    states = [row.state for order in told if isinstance(order, VMs) for row in order.rows if row.vm_id == route.vm_id]
    assert states[-1] is State.STOPPED
    assert isinstance(told[-1], Gone)


async def test_a_table_that_is_not_read_is_not_piled_up(worker: Played) -> None:
    route = worker.gate.routes["app"]
    worker.gate.routes |= {f"s{n}": replace(route, id=f"rt-{n}", subdomain=f"s{n}") for n in range(20_000)}
    told = 0

    def all_routes() -> object:
        nonlocal told
        for one in list(worker.gate.routes.values()):
            told += 1
            yield one

    worker.gate.all_routes = all_routes  # type: ignore[method-assign, assignment]
    worker.link.begin(SETTINGS)
    before = -1
    while before != told or not told:
        before = told
        for _ in range(50):
            await asyncio.sleep(0)
    assert told < 10_000
    await worker.until_serve()
    assert told == 20_001


async def test_leases_are_holds_and_their_last_bytes_are_known(worker: Played) -> None:
    now = datetime.now(UTC)  # noqa: TID251
    early, late = now - timedelta(minutes=2), now - timedelta(minutes=1)
    worker.say(Come(VM, "192.0.2.1"), Used({VM: early}))
    await worker.gate.until_held(VM, 1)
    worker.say(Left(VM, late))
    await worker.gate.until_released(VM)
    assert worker.gate.held_by == [("http", "192.0.2.1")]
    assert worker.gate.moments[VM] == [early, late]


async def test_nobody_was_active_in_the_future(worker: Played) -> None:
    before = datetime.now(UTC)  # noqa: TID251
    worker.say(Come(VM, ""), Left(VM, before + timedelta(days=1)))
    await worker.gate.until_came(1)
    await worker.gate.until_released(VM)
    assert worker.gate.moments[VM][0] < before + timedelta(hours=1)


async def test_coming_again_is_an_arrival_but_no_second_lease(worker: Played) -> None:
    worker.say(Come(VM, "a"), Come(VM, "b"), Come(VM, "c"))
    await worker.gate.until_came(3)
    assert worker.gate.holds[VM] == 1


async def test_hanging_up_lets_go_of_everything(worker: Played) -> None:
    worker.gate.move(VM, State.SNAPSHOTTED)
    worker.say(Come(VM, ""), Need(1, VM, "http", 30, ""))
    await worker.gate.until_needed(1)
    worker.hang_up()
    assert await worker.link.ended == ""
    await worker.gate.until_left(1)
    assert not worker.gate.holds[VM]


async def test_a_cancelled_question_has_no_answer(worker: Played) -> None:
    worker.gate.move(VM, State.SNAPSHOTTED)
    worker.say(Come(VM, ""), Need(1, VM, "http", 30, ""))
    await worker.gate.until_needed(1)
    worker.say(Cancel(1), Cancel(7))
    await worker.gate.until_left(1)
    worker.gate.wake.set()
    worker.say(Need(2, VM, "http", 30, ""))
    assert await worker.next() == Done(2)


async def test_a_dialled_socket_comes_with_the_answer(worker: Played) -> None:
    listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    worker.gate.add("app", port := listener.sockets[0].getsockname()[1])
    worker.say(Dial(1, VM, 80, 30))
    while True:
        try:
            taken = worker.take()
            break
        except BlockingIOError:
            await asyncio.sleep(0)
    with taken:
        assert taken.getpeername() == ("127.0.0.1", port)
    listener.close()


async def test_an_error_is_answered_with_its_sentence(worker: Played) -> None:
    worker.say(Dial(1, VM, 80, 30))  # nobody listens on port 1
    answer = await worker.next()
    assert isinstance(answer, Failed)
    assert answer.sentence == "upstream refused connection"


async def test_a_question_with_a_number_in_use_ends_the_link(worker: Played) -> None:
    worker.gate.move(VM, State.SNAPSHOTTED)
    worker.say(Come(VM, ""), Need(1, VM, "http", 30, ""), Need(1, VM, "http", 30, ""))
    assert "number" in await worker.link.ended


async def test_what_was_served_is_told(worker: Played) -> None:
    counts = Counts({"rt-1": (1, 2, 3, 4)})
    worker.say(counts, Serving(), Unable(98, "too late"))
    assert await worker.link.serving is None
    assert worker.counted == [counts]


async def test_why_it_cannot_listen_is_told(worker: Played) -> None:
    worker.say(Unable(98, "Address already in use"))
    error = await worker.link.serving
    assert error is not None
    assert (error.errno, error.strerror) == (98, "Address already in use")
