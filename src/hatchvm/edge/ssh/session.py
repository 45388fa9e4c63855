"""One SSH client: held from its first moment, connected to its guest when that runs, told why if it never does.

Only a client that waits has a task. What it says meanwhile stays in the kernel's buffer.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final, Protocol

from hatchvm.base import errors, tasks
from hatchvm.edge.ssh.farewell import farewell, sentence_of
from hatchvm.edge.ssh.hangups import Hangups
from hatchvm.edge.ssh.reach import reach_sshd
from hatchvm.edge.ssh.splice import Pipes, Splice
from hatchvm.ports.gate import Gate, Hold

#: A client that was told why gets so long to read it.
_LINGER_S: Final = 2.0
_DISCARD_BYTES: Final = 65536

#: A silent connection is asked after a minute whether it still lives, four times in another. One that acknowledges
#: nothing, or takes nothing, for two minutes is dead.
_KEEP_ALIVE: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 120_000),
)


class House(Protocol):
    """What every session of one gateway shares."""

    gate: Gate
    pipes: Pipes
    hangups: Hangups
    wake_timeout_s: float

    def arrived(self, session: Session) -> None:
        """It waits no more: for better or worse."""

    def gone(self, session: Session) -> None:
        """Its sockets are closed."""


class Session:
    """Owns the client's socket. `vm_id` is the VM it came for."""

    __slots__ = ("_client", "_hold", "_house", "_linger", "_peer", "_splice", "_task", "vm_id")

    def __init__(self, house: House, vm_id: str, client: socket.socket, peer: str) -> None:
        """`client`: accepted and non-blocking; `peer`: its address."""
        self.vm_id = vm_id
        self._house = house
        self._client = client
        self._peer = peer
        self._hold: Hold = house.gate.hold(vm_id, "ssh", peer)
        self._splice: Splice | None = None
        self._linger: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        _never_wait_for_the_dead(self._client)
        self._house.hangups.watch(self._client, self.drop)
        self._task = tasks.supervise(self._connect(), name=f"ssh to {self.vm_id}")

    def refuse(self, sentence: str) -> None:
        """Tell a client that waits why it is let go of, and let go."""
        self._stop_waiting()
        self._leave(farewell(sentence))

    def end(self) -> None:
        """End a connected session on both sides, the client's with an orderly end of stream."""
        splice, self._splice = self._splice, None
        if splice is not None:
            splice.give_back()
            self._leave(b"")

    def drop(self) -> None:
        """Close everything at once."""
        self._stop_waiting()
        if self._splice is not None:
            self._splice.end(reset=True)
            return
        if self._linger is not None:
            self._linger.cancel()
            asyncio.get_running_loop().remove_reader(self._client.fileno())
        self._client.close()
        self._gone()

    async def _connect(self) -> None:
        try:
            house = self._house
            guest = await reach_sshd(house.gate, self.vm_id, peer=self._peer, timeout_s=house.wake_timeout_s)
        except errors.HatchError as error:
            self._task = None
            self.refuse(sentence_of(error))
        except Exception:
            self._task = None
            self.refuse("internal error")
            raise
        else:
            self._task = None
            self._stop_waiting()
            _never_wait_for_the_dead(guest)
            ends = (self._client, guest)
            self._splice = Splice(ends, house.pipes, house.hangups, moved=self._hold.touch, ended=self._gone)

    def _stop_waiting(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._house.hangups.leave(self._client)
        self._house.arrived(self)

    def _leave(self, words: bytes) -> None:
        """Say that and end the stream. Hear the client out for a moment: closing a socket with unread bytes in it
        resets the connection, and that may overtake the words.
        """
        self._hold.release()
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            self._client.send(words)
            self._client.shutdown(socket.SHUT_WR)
        self._linger = loop.call_later(_LINGER_S, self.drop)
        loop.add_reader(self._client.fileno(), self._discard)

    def _discard(self) -> None:
        try:
            if self._client.recv(_DISCARD_BYTES):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        self.drop()

    def _gone(self) -> None:
        self._hold.release()
        self._splice = None
        self._house.gone(self)


def _never_wait_for_the_dead(sock: socket.socket) -> None:
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        for level, option, value in _KEEP_ALIVE:
            sock.setsockopt(level, option, value)
