"""The HTTP proxy: listens, and looks after the connections it accepted."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Sequence
from typing import Final

from hatchvm.base.clock import Clock, SystemClock
from hatchvm.domain.route import Route
from hatchvm.edge.http.connection import Accepted
from hatchvm.edge.http.connector import Connector
from hatchvm.edge.http.h2.door import Door
from hatchvm.edge.http.hosts import Hosts
from hatchvm.edge.http.ledger import Ledger
from hatchvm.edge.http.limits import FRESH_SLOTS, Limits
from hatchvm.edge.http.tls.listener import TLSListener
from hatchvm.ports.gate import Gate

_SWEEP_INTERVAL_S: Final = 0.5
_BACKLOG: Final = 4096


class ProxyServer:
    """The data plane of SPEC section 4. Start it once, close it once."""

    def __init__(
        self,
        gate: Gate,
        *,
        base_domains: Sequence[str],
        wake_timeout_s: float,
        stream_idle_timeout_s: float,
        answer_timeout_s: float = 300.0,
        access_log: float = 0.0,
        fresh_slots: int = FRESH_SLOTS,
        clock: Clock | None = None,
    ) -> None:
        """`base_domains`: lower case, without a leading dot. `answer_timeout_s`: silence before an answer's head.
        `access_log`: see `Ledger`. `fresh_slots`: see `Limits`; fewer if other processes knock at the same guests.

        Durations are seconds.
        """
        self.gate = gate
        self.ledger = Ledger(access_log, exists=self._leads)
        self.hosts = Hosts(gate, base_domains)
        self.limits = Limits(
            wake_timeout_s=wake_timeout_s,
            stream_idle_timeout_s=stream_idle_timeout_s,
            answer_timeout_s=answer_timeout_s,
            fresh_slots=fresh_slots,
        )
        self.clock = clock or SystemClock()
        self.connector = Connector(gate, self.limits, self.clock)
        self._connections: set[Accepted] = set()
        self._empty = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._tls: TLSListener | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def start(self, host: str, port: int, *, shared: bool = False) -> int:
        """Listen; return the port, which the system chose if `port` is 0. Raises OSError if it is taken.

        `shared`: other processes of this user may listen there too; the system spreads connections over all of them.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Door(self), host, port, backlog=_BACKLOG, reuse_port=shared or None
        )
        self._tick()
        return int(self._server.sockets[0].getsockname()[1])

    async def start_tls(self, host: str, port: int, context: ssl.SSLContext, *, shared: bool = False) -> int:
        """Listen for TLS as well (`shared`: see `start`); return the port. Raises OSError if it is taken."""
        self._tls = TLSListener(context, lambda: Door(self))
        return await self._tls.start(host, port, backlog=_BACKLOG, shared=shared)

    async def close(self) -> None:
        """Stop listening, give exchanges under way a moment to end, and cut what is left."""
        if self._server:
            self._server.close()
        if self._tls:
            self._tls.close()
        if self._timer:
            self._timer.cancel()
        for connection in list(self._connections):
            connection.drain()
        if self._connections:
            self._empty.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.limits.close_timeout_s):
                    await self._empty.wait()
        for connection in list(self._connections):
            connection.abort()
        self.connector.close()

    def forget(self, vm_id: str) -> None:
        """A VM went to sleep: its pooled connections are of no use any more."""
        self.connector.forget(vm_id)

    def sweep(self) -> None:
        """End what has lasted too long by the clock. Called by the server's own timer."""
        now = self.clock.monotonic()
        for connection in list(self._connections):
            connection.look(now)
        self.connector.sweep()

    @property
    def buffered_bytes(self) -> int:
        """What clients and guests sent and the other side has not taken yet."""
        return sum(connection.buffered_bytes for connection in self._connections)

    def _leads(self, route: Route) -> bool:
        now = self.gate.route(route.subdomain)
        return now is not None and now.id == route.id

    # -- connection.House

    def opened(self, connection: Accepted) -> None:
        self._connections.add(connection)

    def closed(self, connection: Accepted) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    def _tick(self) -> None:
        self.sweep()
        self._timer = asyncio.get_running_loop().call_later(_SWEEP_INTERVAL_S, self._tick)
