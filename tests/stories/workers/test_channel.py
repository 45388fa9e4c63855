"""The channel between the daemon and a worker: order, bounds, sockets, and what becomes of a liar."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hatchvm.base.errors import Invalid
from hatchvm.edge.http.workers.channel import Channel, pair
from hatchvm.edge.http.workers.wire import MAX_BYTES


class Ear:
    """Keeps what it hears; `refuses` is a packet that nobody may send."""

    def __init__(self) -> None:
        self.heard_all: list[bytes] = []
        self.passed: list[socket.socket] = []
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.refuses = b"lie"

    def heard(self, packet: bytes, passed: socket.socket | None) -> None:
        if packet == self.refuses:
            raise Invalid("no")
        self.heard_all.append(packet)
        if passed is not None:
            self.passed.append(passed)

    def lost(self, why: str) -> None:
        self.ended.set_result(why)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, its = pair()
    with ours, its:
        yield ours, its


Ends = tuple[socket.socket, socket.socket]


async def until(ear: Ear, count: int) -> None:
    while len(ear.heard_all) < count:
        await asyncio.sleep(0)


async def test_what_is_not_read_waits_and_comes_in_order(ends: Ends) -> None:
    sender, ear = Channel(ends[0], Ear()), Ear()
    packets = [b"%05d" % number + bytes(20_000) for number in range(200)]
    for packet in packets:
        sender.send(packet)
    assert not sender_has_room(sender)
    hearer = Channel(ends[1], ear)
    await until(ear, len(packets))
    assert ear.heard_all == packets
    assert sender_has_room(sender)
    sender.close()
    assert await ear.ended == ""
    hearer.close()


def sender_has_room(channel: Channel) -> bool:
    waiting = channel.room()
    try:
        waiting.send(None)
    except StopIteration:
        return True
    waiting.close()
    return False


async def test_a_socket_is_passed_and_closed_here(ends: Ends) -> None:
    ear = Ear()
    sender, hearer = Channel(ends[0], Ear()), Channel(ends[1], ear)
    near, far = socket.socketpair()
    with far:
        sender.send(b"take", near)
        assert near.fileno() == -1
        await until(ear, 1)
        with ear.passed[0] as taken:
            taken.send(b"hello")
            assert far.recv(10) == b"hello"
            assert not os.get_inheritable(taken.fileno())
    sender.close()
    hearer.close()


async def test_a_socket_for_nobody_is_closed(ends: Ends) -> None:
    sender = Channel(ends[0], Ear())
    sender.close()
    near, far = socket.socketpair()
    with far:
        sender.send(b"take", near)
        assert far.recv(1) == b""


@pytest.mark.parametrize("packet", [b"lie", bytes(MAX_BYTES + 1)])
async def test_whoever_says_what_nobody_may_is_lost(ends: Ends, packet: bytes) -> None:
    ear = Ear()
    hearer = Channel(ends[1], ear)
    ends[0].send(packet)
    assert await ear.ended
    assert ends[0].recv(1) == b""
    hearer.close()


def descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


async def test_too_many_sockets_are_closed(ends: Ends) -> None:
    ear = Ear()
    hearer = Channel(ends[1], ear)
    before = descriptors()
    socket.send_fds(ends[0], [b"x"], [0, 0, 0, 0])
    await ear.ended
    assert descriptors() == before - 1  # its own end
    hearer.close()


async def test_a_descriptor_that_is_no_socket_is_refused(ends: Ends) -> None:
    ear = Ear()
    hearer = Channel(ends[1], ear)
    with Path(os.devnull).open() as null:  # noqa: ASYNC230
        socket.send_fds(ends[0], [b"x"], [null.fileno()])
    assert await ear.ended
    hearer.close()


async def test_an_end_that_is_gone_is_heard_once(ends: Ends) -> None:
    ear = Ear()
    hearer = Channel(ends[1], ear)
    ends[0].close()
    hearer.send(b"to nobody")
    assert await ear.ended is not None
    hearer.send(b"to nobody")
    hearer.close()
