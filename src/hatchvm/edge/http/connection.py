"""A client's connection: runs the relay's commands on real transports, and keeps the VM held while bytes flow.

No task runs per request: a request for a running VM with a pooled connection is served inside the transports'
callbacks. Only a connection that must be made (or a VM that must be woken) takes a task, and the client hanging up
cancels it.

Back-pressure: whoever cannot be written to stops the other side from being read, so no more than the transports' own
buffers is ever kept.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol, cast

from hatchvm.base import errors, tasks
from hatchvm.base.clock import Clock
from hatchvm.domain.route import Route, subdomain_of
from hatchvm.edge.http.connector import Connector
from hatchvm.edge.http.limits import Limits
from hatchvm.edge.http.proto.commands import (
    AbortClient,
    Again,
    Begin,
    CloseClient,
    Command,
    EndClient,
    EndUpstream,
    Finish,
    SendClient,
    SendUpstream,
)
from hatchvm.edge.http.proto.refusal import Refusal
from hatchvm.edge.http.proto.relay import Phase, Relay
from hatchvm.edge.http.proto.request import Request
from hatchvm.edge.http.upstream import Upstream
from hatchvm.ports.gate import Gate, Hold

_log: Final = logging.getLogger(__name__)
_FLOWING: Final = frozenset({Phase.ANSWER, Phase.STREAM, Phase.SPLICE})
_SILENT_STREAM: Final = frozenset({Phase.STREAM, Phase.SPLICE})
#: With this option a close resets the connection: the only way to say that an answer without a length is incomplete.
_RESET: Final = b"\x01\x00\x00\x00\x00\x00\x00\x00"


class House(Protocol):
    """What every connection of one proxy shares."""

    gate: Gate
    connector: Connector
    limits: Limits
    clock: Clock
    base_domains: tuple[str, ...]

    def opened(self, connection: ClientConnection) -> None: ...

    def closed(self, connection: ClientConnection) -> None: ...


class ClientConnection(asyncio.Protocol):
    """One client, for one or many requests."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._relay: Relay = cast(Relay, None)
        self._commands: deque[Command] = deque()
        self._obeying = False
        self._route: Route | None = None
        self._hold: Hold | None = None
        self._upstream: Upstream | None = None
        self._connecting: asyncio.Task[Upstream] | None = None
        self._client_full = False
        self._upstream_full = False
        self._reading = True
        self._phase = Phase.IDLE
        self._since = house.clock.monotonic()
        self._peer = ""

    # -- asyncio.Protocol: the client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._peer = (transport.get_extra_info("peername") or ("unknown",))[0]  # None: it has gone already
        forwarded = f"X-Forwarded-For: {self._peer}\r\nX-Forwarded-Proto: http\r\n"
        self._relay = Relay(forwarded=forwarded.encode())
        # A client that vanished without a word must not keep a silent stream for ever.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._house.opened(self)

    def data_received(self, data: bytes) -> None:
        self._moved()
        self._run(self._relay.client_data(data))

    def eof_received(self) -> bool:
        self._run(self._relay.client_eof())
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._run(self._relay.client_lost())
        self._house.closed(self)

    def pause_writing(self) -> None:
        self._client_full = True
        if self._upstream:
            self._upstream.pause()

    def resume_writing(self) -> None:
        self._client_full = False
        if self._upstream:
            self._upstream.resume()

    # -- upstream.User: the guest

    def upstream_data(self, data: bytes) -> None:
        self._moved()
        self._run(self._relay.upstream_data(data))

    def upstream_eof(self) -> bool:
        self._run(self._relay.upstream_eof())
        return self._relay.phase is Phase.SPLICE

    def upstream_lost(self, *, broken: bool) -> None:
        self._run(self._relay.upstream_lost(broken=broken))

    def upstream_full(self, *, full: bool) -> None:
        self._upstream_full = full
        self._pace()

    # -- the proxy

    def drain(self) -> None:
        """Finish the exchange under way, then close."""
        self._run(self._relay.drain())

    def abort(self) -> None:
        self._transport.abort()

    @property
    def buffered_bytes(self) -> int:
        upstream = self._upstream.buffered_bytes if self._upstream else 0
        return self._transport.get_write_buffer_size() + upstream + self._relay.backlog_bytes

    def look(self, now: float) -> None:
        """Act on what has lasted too long. Called every now and then."""
        phase, silent_s = self._relay.phase, now - self._since
        limits = self._house.limits
        if phase in _SILENT_STREAM:
            if silent_s >= limits.stream_idle_timeout_s:
                self._let_go()
            return
        limit_s = {
            Phase.IDLE: limits.keep_alive_timeout_s,
            Phase.HEAD: limits.head_timeout_s,
            Phase.ANSWER: limits.answer_timeout_s,
            Phase.LINGER: limits.linger_timeout_s,
        }.get(phase)
        if limit_s is not None and silent_s >= limit_s:
            self._run(self._relay.deadline())

    # -- running commands

    def _run(self, commands: Sequence[Command]) -> None:
        """Obey, in order. Obeying may bring events with commands of their own: those come after."""
        self._commands.extend(commands)
        if self._obeying:
            return
        self._obeying = True
        try:
            while self._commands:
                self._obey(self._commands.popleft())
        finally:
            self._obeying = False
        if self._relay.phase is not self._phase:
            self._phase = self._relay.phase
            self._since = self._house.clock.monotonic()
        self._pace()

    def _obey(self, command: Command) -> None:
        match command:
            case SendClient(data):
                if not self._transport.is_closing():
                    self._transport.write(data)
            case SendUpstream(data):
                if self._upstream:
                    self._upstream.write(data)
            case Begin(request):
                self._begin(request)
            case Finish(reuse):
                self._finish(reuse=reuse)
            case Again():
                self._detach(reuse=False)
                self._connect(awake=True, fresh=True)
            case EndUpstream():
                if self._upstream:
                    self._upstream.end()
            case _:
                self._obey_ending(command)

    def _obey_ending(self, command: Command) -> None:
        match command:
            case EndClient() | CloseClient(linger=True):
                if not self._transport.is_closing():
                    self._transport.write_eof()
            case CloseClient():
                self._transport.close()
            case AbortClient():
                if not self._transport.is_closing():
                    self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                self._transport.abort()

    # -- one exchange

    def _begin(self, request: Request) -> None:
        house = self._house
        try:
            route = self._find(request)
            self._route = route
            # The hold comes before the question: a suspend under way sees it and is taken back.
            self._hold = house.gate.hold(route.vm_id, "http", self._peer)
            awake = house.gate.ready(route)
        except errors.HatchError as error:
            self._refuse(error)
            return
        self._hold.touch()
        target = route.vm_id, route.target_port
        upstream = house.connector.pooled(target, repeatable=request.idempotent) if awake else None
        if upstream:
            self._attach(upstream)
        else:
            self._connect(awake=awake, fresh=False)

    def _find(self, request: Request) -> Route:
        subdomain = subdomain_of(request.host.decode("ascii"), self._house.base_domains)
        if subdomain is None:
            raise errors.Upstream("no subdomain in host header")
        route = self._house.gate.route(subdomain)
        if route is None:
            raise errors.Upstream(f'no route for subdomain "{subdomain}"')
        return route

    def _connect(self, *, awake: bool, fresh: bool) -> None:
        assert self._route is not None
        if not awake:
            self._run(self._relay.waking())
        work = self._house.connector.connect(self._route, awake=awake, fresh=fresh, by=self._peer)
        self._connecting = tasks.spawn(work, name=f"connect to {self._route.vm_id}")
        self._connecting.add_done_callback(self._connected)

    def _connected(self, task: asyncio.Task[Upstream]) -> None:
        if task is not self._connecting:  # the exchange ended meanwhile
            if not task.cancelled() and not task.exception():
                self._house.connector.give_back(task.result())
            return
        self._connecting = None
        error = None if task.cancelled() else task.exception()
        if error is None:
            self._attach(task.result())
        elif isinstance(error, errors.HatchError):
            self._refuse(error)
        else:
            _log.error("connecting to a guest failed", exc_info=error)
            self._refuse(errors.Internal("internal error"))

    def _attach(self, upstream: Upstream) -> None:
        self._upstream = upstream
        upstream.user = self
        if self._client_full:
            upstream.pause()
        self._run(self._relay.upstream_ready(reused=upstream.served))

    def _refuse(self, error: errors.HatchError) -> None:
        # A 404 would look like the guest's own; here it says that a route leads nowhere.
        status = 502 if error.kind is errors.Kind.NOT_FOUND else errors.HTTP_STATUS[error.kind]
        refusal = Refusal(status=status, sentence=error.message, retry_after_s=error.retry_after_s)
        self._run(self._relay.refused(refusal))

    def _finish(self, *, reuse: bool) -> None:
        connecting, self._connecting = self._connecting, None
        if connecting:
            connecting.cancel()
        self._detach(reuse=reuse)
        self._let_go()
        self._route = None

    def _detach(self, *, reuse: bool) -> None:
        upstream, self._upstream = self._upstream, None
        self._upstream_full = False
        if not upstream:
            return
        if reuse:
            upstream.resume()
            self._house.connector.give_back(upstream)
        else:
            upstream.close()

    # -- holding and pacing

    def _moved(self) -> None:
        """A byte came, from either side."""
        if self._phase not in _FLOWING:
            return
        self._since = self._house.clock.monotonic()
        if self._hold is None and self._route is not None:
            self._hold = self._house.gate.hold(self._route.vm_id, "http", self._peer)
        if self._hold:
            self._hold.touch()

    def _let_go(self) -> None:
        hold, self._hold = self._hold, None
        if hold:
            hold.release()

    def _pace(self) -> None:
        """Read from the client only what can be passed on or kept within bounds."""
        reading = not self._upstream_full and not self._relay.backlogged
        if reading is self._reading or self._transport.is_closing():
            return
        self._reading = reading
        if reading:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()
