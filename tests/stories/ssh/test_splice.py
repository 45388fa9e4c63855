"""Two connections spliced: whatever both ends do, each hears a beginning of what the other said, and the whole of it
unless its connection ends with a reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from dataclasses import dataclass, field
from typing import Final, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hatchvm.base import tasks
from hatchvm.edge.ssh.hangups import Hangups
from hatchvm.edge.ssh.splice import Pipe, Pipes, Splice

RESET: Final = b"\1\0\0\0\0\0\0\0"
MIB: Final = 1024 * 1024


@dataclass(frozen=True)
class Plan:
    """What one end does: says its words in pieces, ends somehow, and reads in pieces, with breaks between them."""

    pieces: list[int]
    breath: int
    last: Literal["end", "close", "reset"]
    gulp: int
    chew: int


PLANS = st.builds(
    Plan,
    pieces=st.lists(st.sampled_from([1, 100, 5_000, 40_000]), max_size=6),
    breath=st.integers(0, 3),
    last=st.sampled_from(["end", "end", "close", "reset"]),
    gulp=st.sampled_from([10, 4096, 262_144]),
    chew=st.integers(0, 3),
)


@dataclass
class End:
    """One end outside the splice."""

    sock: socket.socket
    plan: Plan
    said: bytearray = field(default_factory=bytearray)
    heard: bytearray = field(default_factory=bytearray)
    whole: bool = False
    cut: bool = False

    async def live(self) -> None:
        hearing = tasks.spawn(self._hear(), name="hear")
        try:
            await self._say()
        except OSError:
            self.cut = True  # this told of the reset, so that hearing may not tell of it again
        if self.plan.last != "end":
            await tasks.cancel_and_wait(hearing)
        else:
            await hearing
        if self.plan.last == "reset":
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.sock.close()

    async def _say(self) -> None:
        words = random.Random(len(self.plan.pieces))
        for size in self.plan.pieces:
            piece = words.randbytes(size)
            self.said += piece
            await asyncio.get_running_loop().sock_sendall(self.sock, piece)
            await breathe(self.plan.breath)
        if self.plan.last == "end":
            self.sock.shutdown(socket.SHUT_WR)

    async def _hear(self) -> None:
        size = max(self.plan.gulp, 1 + sum(self.plan.pieces) // 50)
        with contextlib.suppress(OSError):
            while data := await asyncio.get_running_loop().sock_recv(self.sock, size):
                self.heard += data
                await breathe(self.plan.chew)
            self.whole = True


async def breathe(times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


def connected(*, narrow: bool = False) -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection. `narrow`: little may be on its way."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    for sock in (one, other):
        sock.setblocking(False)
        if narrow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return one, other


async def play(client: Plan, guest: Plan, *, narrow: bool) -> tuple[End, End]:
    outer, inner = connected(narrow=narrow), connected(narrow=narrow)
    pipes, hangups, ended = Pipes(), Hangups(), asyncio.Event()
    ends = End(outer[0], client), End(inner[0], guest)
    Splice((outer[1], inner[1]), pipes, hangups, moved=lambda: None, ended=ended.set)
    await asyncio.gather(*(end.live() for end in ends))
    await ended.wait()
    assert outer[1].fileno() == inner[1].fileno() == -1
    assert pipes.lent == 0
    hangups.close()
    pipes.close()
    return ends


@given(PLANS, PLANS, st.booleans())
@settings(max_examples=80, deadline=None)
def test_every_byte_in_order_or_a_reset(client: Plan, guest: Plan, narrow: bool) -> None:
    ends = asyncio.run(play(client, guest, narrow=narrow))
    for listener, speaker in (ends, reversed(ends)):
        assert speaker.said.startswith(listener.heard)
        if listener.whole and not listener.cut:
            assert listener.heard == speaker.said
    if client.last == guest.last == "end":
        assert ends[0].whole
        assert ends[1].whole


async def test_a_stuck_way_keeps_one_pipe_and_the_other_way_goes_on() -> None:
    (client, near), (guest, far) = connected(), connected()
    loop, pipes, hangups, ended = asyncio.get_running_loop(), Pipes(), Hangups(), asyncio.Event()
    Splice((near, far), pipes, hangups, moved=lambda: None, ended=ended.set)
    flood = tasks.spawn(loop.sock_sendall(client, bytes(64 * MIB)), name="flood")
    while not pipes.lent:
        await asyncio.sleep(0)
    for _ in range(10):
        await loop.sock_sendall(guest, b"hello")
        assert await loop.sock_recv(client, 5) == b"hello"
    assert pipes.lent == 1
    assert not flood.done()
    await tasks.cancel_and_wait(flood)
    guest.close()
    await ended.wait()
    client.close()
    await _nothing_is_left_in(pipes, hangups)
    hangups.close()
    pipes.close()


async def _nothing_is_left_in(pipes: Pipes, hangups: Hangups) -> None:
    """The next to use a pipe do not hear what the last ones did not take."""
    (client, near), (guest, far) = connected(), connected()
    ended = asyncio.Event()
    Splice((near, far), pipes, hangups, moved=lambda: None, ended=ended.set)
    await asyncio.get_running_loop().sock_sendall(client, b"clean")
    assert await asyncio.get_running_loop().sock_recv(guest, 100) == b"clean"
    client.close()
    guest.close()
    await ended.wait()


async def test_a_reset_that_shows_in_sending_first_is_passed_on_as_one() -> None:
    """The error is told once, to whoever sends into the dead connection: reading from it ends as if all were well. What
    the guest said before is heard.
    """
    (client, near), (guest, far) = connected(), connected()
    pipes, hangups, ended = Pipes(), Hangups(), asyncio.Event()
    Splice((near, far), pipes, hangups, moved=lambda: None, ended=ended.set)
    client.send(b"x")
    guest.send(b"last words")
    guest.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    guest.close()
    await ended.wait()
    assert client.recv(100) == b"last words"
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    client.close()
    hangups.close()
    pipes.close()


def test_large_pipes_are_few_and_come_back() -> None:
    pipes = Pipes()
    lent = [pipes.take() for _ in range(20)]
    assert [pipe.size >= MIB for pipe in lent] == [True] * 16 + [False] * 4
    for pipe in reversed(lent):
        pipes.give(pipe, empty=True)
    again = [pipes.take() for _ in range(20)]
    assert sum(pipe.size >= MIB for pipe in again) == 16
    for pipe in again:
        pipes.give(pipe, empty=False)
    assert pipes.lent == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        again[0].close()


def test_a_size_that_is_not_granted_is_not_insisted_on() -> None:
    pipe = Pipe(2**40)
    assert pipe.size >= 4096
    pipe.close()
