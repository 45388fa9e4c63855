"""The SSH gateway: one listener for every VM's port; a client that comes wakes the VM and is connected to its sshd.

Whoever is not in an allowed network is closed before anything else happens. Ports are opened and closed by whoever
hears of VMs; nothing is polled but a port that somebody else holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import Sequence
from typing import Final

import structlog

from hatchvm.base.clock import Clock, SystemClock
from hatchvm.edge.ssh import allow
from hatchvm.edge.ssh.allow import Network
from hatchvm.edge.ssh.hangups import Hangups
from hatchvm.edge.ssh.session import Session
from hatchvm.edge.ssh.splice import Pipes
from hatchvm.ports.gate import Gate
from hatchvm.telemetry import logs

_log = structlog.get_logger()

_BACKLOG: Final = 1024
#: Accepted in one go, before others get their turn.
_ACCEPTS: Final = 64
#: Clients that wait for one VM. Each holds a descriptor.
MAX_WAITING: Final = 512
#: Sessions in all, but never more than may take half of the process's descriptors: each has two.
MAX_SESSIONS: Final = 10_000
_DESCRIPTORS_A_SESSION: Final = 4
#: Between two attempts to listen on a port that was taken, or to accept when there were no descriptors.
_RETRY_S: Final = 30.0
_PAUSE_S: Final = 1.0
_REFUSED_LOG_S: Final = 60.0
_CLOSE_S: Final = 3.0


class SSHGateway:
    """Start it once, close it once. `wake_timeout_s`: how long a client waits for its VM, and then for its sshd."""

    def __init__(
        self, gate: Gate, *, allowed: Sequence[Network], wake_timeout_s: float, clock: Clock | None = None
    ) -> None:
        """Listens on every interface that `allowed` needs: on loopback only, if only loopback may connect.

        To be made where the event loop runs.
        """
        soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.gate = gate
        self.wake_timeout_s = wake_timeout_s
        self.pipes = Pipes()
        self.hangups = Hangups()
        self._allowed = tuple(allowed)
        self._hosts = allow.hosts(self._allowed)
        self._clock = clock or SystemClock()
        self._max_sessions = min(MAX_SESSIONS, max(1, soft_limit // _DESCRIPTORS_A_SESSION))
        self._doors: dict[int, _Door] = {}
        self._sessions: set[Session] = set()
        self._waiting: dict[str, set[Session]] = {}
        self._empty = asyncio.Event()
        self._retry: asyncio.TimerHandle | None = None
        self._refused = 0
        self._refused_logged_at = float("-inf")
        _log.info(logs.SSH_GATEWAY_STARTED, allowed=[str(network) for network in self._allowed])

    @property
    def sessions(self) -> int:
        """How many clients there are: waiting, connected, or being told why not."""
        return len(self._sessions)

    def open(self, vm_id: str, port: int) -> None:
        """Listen on `port` for clients of the VM; again, if it could not be had before.

        A port that cannot be had is one warning: it costs SSH, not the VM, and is tried again from time to time.
        """
        door = self._doors.get(port)
        if door is not None and door.vm_id != vm_id:
            self.close(port)
            door = None
        if door is None:
            door = self._doors[port] = _Door(self, vm_id, port)
        door.open(self._hosts)
        if door.missing(self._hosts) and self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(_RETRY_S, self._try_again)

    def close(self, port: int) -> None:
        """Listen on it no more; sessions that came through it go on. May be repeated."""
        if door := self._doors.pop(port, None):
            door.close()

    def forget(self, vm_id: str) -> None:
        """The VM runs no more: end its sessions, each client's side in good order. Clients that wait go on waiting."""
        for session in [session for session in self._sessions if session.vm_id == vm_id]:
            session.end()

    async def aclose(self) -> None:
        """Stop listening, tell clients that wait, end all sessions; what has not ended in a moment is cut."""
        if self._retry:
            self._retry.cancel()
        for port in list(self._doors):
            self.close(port)
        for session in [one for waiting in self._waiting.values() for one in waiting]:
            session.refuse("hatch is restarting; try again in 5 s")
        for session in list(self._sessions):
            session.end()
        if self._sessions:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await self._empty.wait()
        for session in list(self._sessions):
            session.drop()
        self.hangups.close()
        self.pipes.close()

    # -- session.House

    def arrived(self, session: Session) -> None:
        waiting = self._waiting.get(session.vm_id, set())
        waiting.discard(session)
        if not waiting:
            self._waiting.pop(session.vm_id, None)

    def gone(self, session: Session) -> None:
        self._sessions.discard(session)
        if not self._sessions:
            self._empty.set()

    # -- for doors

    def knock(self, vm_id: str, client: socket.socket, peer: str) -> None:
        """Somebody has connected. Takes the socket."""
        if not allow.admits(self._allowed, peer):
            self._turn_away(client, peer, "not in HATCH_SSH_ALLOWED_CIDR")
        elif len(self._sessions) >= self._max_sessions:
            self._turn_away(client, peer, "too many sessions")
        else:
            self._welcome(vm_id, client, peer)

    def _welcome(self, vm_id: str, client: socket.socket, peer: str) -> None:
        client.setblocking(False)
        session = Session(self, vm_id, client, peer)
        self._sessions.add(session)
        waiting = self._waiting.setdefault(vm_id, set())
        if len(waiting) >= MAX_WAITING:
            session.refuse("too many clients wait for this vm; try again in 5 s")
        else:
            waiting.add(session)
            session.begin()

    def _turn_away(self, client: socket.socket, peer: str, why: str) -> None:
        """Without a word."""
        client.close()
        self.note_refusal(peer, why)

    def note_refusal(self, peer: str, why: str) -> None:
        """One line a minute in the log, with the last reason."""
        self._refused += 1
        now = self._clock.monotonic()
        if now - self._refused_logged_at >= _REFUSED_LOG_S:
            _log.warning(logs.SSH_REFUSED, peer=peer, reason=why, refused=self._refused)
            self._refused = 0
            self._refused_logged_at = now

    def _try_again(self) -> None:
        self._retry = None
        for door in list(self._doors.values()):
            if door.missing(self._hosts):
                self.open(door.vm_id, door.port)


class _Door:
    """The listeners of one port."""

    __slots__ = ("_gateway", "_listeners", "_warned", "port", "vm_id")

    def __init__(self, gateway: SSHGateway, vm_id: str, port: int) -> None:
        self.vm_id = vm_id
        self.port = port
        self._gateway = gateway
        self._listeners: dict[str, socket.socket] = {}
        self._warned = False

    def missing(self, hosts: Sequence[str]) -> bool:
        return len(self._listeners) < len(hosts)

    def open(self, hosts: Sequence[str]) -> None:
        for host in hosts:
            if host in self._listeners:
                continue
            try:
                listener = _listen(host, self.port)
            except OSError as error:
                if not self._warned:
                    _log.warning(logs.SSH_NOT_LISTENING, port=self.port, vm=self.vm_id, host=host, error=str(error))
                self._warned = True
            else:
                self._listeners[host] = listener
                asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)
                _log.info(logs.SSH_LISTENING, port=self.port, vm=self.vm_id, host=host)

    def close(self) -> None:
        while self._listeners:
            _, listener = self._listeners.popitem()
            asyncio.get_running_loop().remove_reader(listener.fileno())
            listener.close()

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS):
            try:
                client, (peer, *_) = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._gateway.note_refusal("", error.strerror or str(error))
                self._pause(listener)
                return
            self._gateway.knock(self.vm_id, client, peer)

    def _pause(self, listener: socket.socket) -> None:
        """Descriptors have run out: the next client waits in the kernel's queue."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener.fileno())
        loop.call_later(_PAUSE_S, self._go_on, listener)

    def _go_on(self, listener: socket.socket) -> None:
        if listener in self._listeners.values():
            asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)


def _listen(host: str, port: int) -> socket.socket:
    """Families apart: the same port can then be had in one if not in the other, and no peer is an IPv4-mapped one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    listener.setblocking(False)
    return listener
