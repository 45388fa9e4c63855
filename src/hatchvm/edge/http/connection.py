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
from collections.abc import Iterator
from email.utils import format_datetime
from itertools import count
from secrets import token_hex
from typing import Final, Protocol, cast

from hatchvm.base import errors, tasks
from hatchvm.base.clock import Clock
from hatchvm.domain.route import Route
from hatchvm.edge.http.connector import Connector
from hatchvm.edge.http.hosts import Hosts
from hatchvm.edge.http.ledger import Ledger
from hatchvm.edge.http.limits import Limits
from hatchvm.edge.http.proto.phase import Phase
from hatchvm.edge.http.proto.refusal import Refusal
from hatchvm.edge.http.proto.relay import Relay
from hatchvm.edge.http.proto.request import Request
from hatchvm.edge.http.upstream import Upstream
from hatchvm.ports.gate import Gate, Hold

_log: Final = logging.getLogger(__name__)
_IDLE: Final = Phase.IDLE
_ANSWER: Final = Phase.ANSWER
_STREAM: Final = Phase.STREAM
_SPLICE: Final = Phase.SPLICE
#: With this option a close resets the connection: the only way to say that an answer without a length is incomplete.
_RESET: Final = b"\x01\x00\x00\x00\x00\x00\x00\x00"


#: What logs call an exchange whose client went before it got an answer.
_CLIENT_LEFT: Final = 499


def _ids() -> Iterator[bytes]:
    """Request ids of one connection: `3f9a0c51d2e8-1`, `-2`, …"""
    return map((token_hex(6).encode() + b"-%x").__mod__, count(1))


class Accepted(Protocol):
    """A client's connection, for whoever looks after all of them."""

    def drain(self) -> None: ...

    def abort(self) -> None: ...

    def look(self, now: float) -> None: ...

    @property
    def buffered_bytes(self) -> int: ...


class House(Protocol):
    """What every connection of one proxy shares."""

    gate: Gate
    connector: Connector
    limits: Limits
    clock: Clock
    hosts: Hosts
    ledger: Ledger

    def opened(self, connection: Accepted) -> None: ...

    def closed(self, connection: Accepted) -> None: ...


class ClientConnection(asyncio.Protocol):
    """One client, for one or many requests. Runs the relay's commands: it is its `Out`."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._now = house.clock.monotonic
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._relay = Relay(self)
        self._request: Request | None = None
        self._route: Route | None = None
        self._bytes_in = 0  # of the exchange under way
        self._bytes_out = 0
        self._began = 0.0
        self._woke = False
        self._h2 = False  # the guest is asked in HTTP/2
        self._hold: Hold | None = None
        self._upstream: Upstream | None = None
        self._connecting: asyncio.Task[Upstream] | None = None
        self._client_full = False
        self._upstream_full = False
        self._reading = True
        self._phase = _IDLE
        self._since = self._now()
        self._peer = ""

    # -- asyncio.Protocol: the client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._peer = (transport.get_extra_info("peername") or ("unknown",))[0]  # None: it has gone already
        scheme = "http" if transport.get_extra_info("ssl_object") is None else "https"
        forwarded = f"X-Forwarded-For: {self._peer}\r\nX-Forwarded-Proto: {scheme}\r\n"
        self._relay.client_made(forwarded.encode(), _ids())
        # A client that vanished without a word must not keep a silent stream for ever.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._house.opened(self)

    def data_received(self, data: bytes) -> None:
        relay = self._relay
        relay.client_data(data)
        if relay.phase is _ANSWER and self._phase is _IDLE:  # the usual way of a request
            self._phase, self._since = _ANSWER, self._began
        else:
            self._settle()
            if self._upstream_full or relay.backlogged:
                self._pace()

    def eof_received(self) -> bool:
        self._relay.client_eof()
        self._settle()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._relay.client_lost()
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
        relay = self._relay
        relay.upstream_data(data)
        if relay.phase is _IDLE:  # the usual end of an answer
            self._phase, self._since = _IDLE, self._now()
            if not self._reading:
                self._pace()
        else:
            self._settle()

    def upstream_eof(self) -> bool:
        self._relay.upstream_eof()
        self._settle()
        return self._relay.phase is _SPLICE

    def upstream_lost(self, *, broken: bool) -> None:
        self._relay.upstream_lost(broken=broken)
        self._settle()

    def upstream_full(self, *, full: bool) -> None:
        self._upstream_full = full
        self._pace()

    # -- the proxy

    def drain(self) -> None:
        """Finish the exchange under way, then close."""
        self._relay.drain()
        self._settle()

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
        match phase:
            case Phase.STREAM | Phase.SPLICE:
                if silent_s >= limits.stream_idle_timeout_s:
                    self._let_go()
                return
            case Phase.IDLE:
                limit_s = limits.keep_alive_timeout_s
            case Phase.HEAD:
                limit_s = limits.head_timeout_s
            case Phase.ANSWER:
                limit_s = limits.answer_timeout_s
            case Phase.LINGER:
                limit_s = limits.linger_timeout_s
            case _:
                return
        if silent_s >= limit_s:
            self._relay.deadline()
            self._settle()

    # -- the relay's commands

    def begin(self, request: Request) -> None:
        house = self._house
        self._request = request
        self._began = self._now()
        self._bytes_in = self._bytes_out = 0
        self._woke = False
        try:
            route = self._route = house.hosts.route(request.host)
            self._h2 = request.grpc
            # The hold comes before the question: a suspend under way sees it and is taken back.
            self._hold = house.gate.hold(route.vm_id, "http", self._peer)
            awake = house.gate.ready(route)
        except errors.HatchError as error:
            self._refuse(error)
            return
        target = route.vm_id, route.target_port
        upstream = house.connector.pooled(target, repeatable=request.idempotent, h2=self._h2) if awake else None
        if upstream:
            self._upstream = upstream
            upstream.user = self
            if self._client_full:
                upstream.pause()
            self._relay.upstream_ready(reused=True)
        else:
            self._connect(awake=awake, fresh=False)

    def again(self) -> None:
        self._detach(reuse=False)
        self._connect(awake=True, fresh=True)

    def send_upstream(self, data: bytes) -> None:
        if self._upstream:
            self._bytes_in += len(data)
            self._upstream.write(data)

    def end_upstream(self) -> None:
        if self._upstream:
            self._upstream.end()

    def send_client(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._bytes_out += len(data)
            self._transport.write(data)

    def end_client(self) -> None:
        if not self._transport.is_closing():
            self._transport.write_eof()

    def finish(self, *, reuse: bool) -> None:
        upstream = self._upstream
        if upstream and reuse and not self._client_full:  # the usual end
            self._upstream = None
            upstream.user = None
            upstream.served = True
            upstream.pool.give(upstream, self._now())
        else:
            self._detach(reuse=reuse)
        self._upstream_full = False
        if self._connecting:
            self._connecting.cancel()
            self._connecting = None
        hold, self._hold = self._hold, None
        if hold:
            hold.release()
        route, self._route = self._route, None
        status = self._relay.status or _CLIENT_LEFT
        ledger = self._house.ledger
        if route:
            ledger.count(route, status, self._bytes_in, self._bytes_out)
        if ledger.log_share:
            self._log(route, status)

    def close_client(self, *, linger: bool) -> None:
        if linger:
            self.end_client()
        else:
            self._transport.close()

    def date(self) -> str:
        return format_datetime(self._house.clock.now(), usegmt=True)

    def abort_client(self) -> None:
        if not self._transport.is_closing():
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    # -- connecting

    def _connect(self, *, awake: bool, fresh: bool) -> None:
        assert self._route is not None
        if not awake:
            self._woke = True
            self._relay.waking()
        work = self._house.connector.connect(self._route, awake=awake, fresh=fresh, by=self._peer, h2=self._h2)
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
        self._settle()

    def _attach(self, upstream: Upstream) -> None:
        self._upstream = upstream
        upstream.user = self
        if self._client_full:
            upstream.pause()
        self._relay.upstream_ready(reused=upstream.served)

    def _refuse(self, error: errors.HatchError) -> None:
        # A 404 would look like the guest's own; here it says that a route leads nowhere.
        status = 502 if error.kind is errors.Kind.NOT_FOUND else errors.HTTP_STATUS[error.kind]
        self._relay.refused(Refusal(status=status, sentence=error.message, retry_after_s=error.retry_after_s))

    def _detach(self, *, reuse: bool) -> None:
        upstream, self._upstream = self._upstream, None
        self._upstream_full = False
        if not upstream:
            return
        if reuse:
            if self._client_full:
                upstream.resume()
            self._house.connector.give_back(upstream)
        else:
            upstream.close()

    def _log(self, route: Route | None, status: int) -> None:
        assert self._request is not None
        self._house.ledger.write(
            self._request,
            status,
            request_id=self._relay.request_id.decode(),
            route=route and route.id,
            vm=route and route.vm_id,
            peer=self._peer,
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
            duration_ms=round((self._now() - self._began) * 1000, 1),
            woke=self._woke,
        )

    # -- holding and pacing

    def _settle(self) -> None:
        """After every event."""
        phase = self._relay.phase
        if phase is not self._phase:
            self._phase = phase
            self._since = self._now()
        elif phase is _STREAM or phase is _SPLICE or phase is _ANSWER:
            self._moved()
        if not self._reading:
            self._pace()

    def _moved(self) -> None:
        """A byte came, from either side."""
        self._since = self._now()
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
