"""One worker: the proxy in a process of its own, for as long as the daemon is at the other end of its channel."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from pathlib import Path
from typing import Final

from hatchvm.base import tasks
from hatchvm.base.clock import SystemClock
from hatchvm.base.errors import Invalid
from hatchvm.base.loop import loop_factory
from hatchvm.edge.http.server import ProxyServer
from hatchvm.edge.http.tls.certificates import Certificates, Pair
from hatchvm.edge.http.workers import wire
from hatchvm.edge.http.workers.channel import Channel
from hatchvm.edge.http.workers.gate import RemoteGate
from hatchvm.edge.http.workers.wire import (
    TLS,
    Counts,
    Done,
    Drain,
    Failed,
    Gone,
    Order,
    Report,
    Routes,
    Serve,
    Serving,
    Settings,
    Unable,
    VMs,
)
from hatchvm.telemetry import logs

_REPORT_S: Final = 1.0


async def work(sock: socket.socket) -> None:
    """Serve until the daemon says so, or has gone, or SIGTERM comes; then finish the exchanges under way."""
    worker = Worker(sock)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.ended.set)
    reporting = tasks.supervise(worker.report(), name="report")
    await worker.ended.wait()
    await worker.close()
    await tasks.cancel_and_wait(reporting)


class Worker:
    """What the daemon says goes to the gate or the proxy. `ended` is set when there is nothing more to do."""

    def __init__(self, sock: socket.socket) -> None:
        self.ended = asyncio.Event()
        self._channel = Channel(sock, self)
        self._gate = RemoteGate(self._send, SystemClock())
        self._settings: Settings | None = None
        self._proxy: ProxyServer | None = None
        self._starting: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None  # the certificates

    async def report(self) -> None:
        """Until cancelled."""
        while True:
            self._report()
            await asyncio.sleep(_REPORT_S)

    async def close(self) -> None:
        """Listen no more, let exchanges under way end. What they need of the daemon they still get, if it is there."""
        if self._starting is not None:
            await asyncio.wait([self._starting])
        if self._watching is not None:
            await tasks.cancel_and_wait(self._watching)
        if self._proxy is not None:
            await self._proxy.close()
        self._report()
        self._channel.close()

    def _report(self) -> None:
        self._gate.report()
        counts = self._proxy.ledger.take() if self._proxy else []
        for at in range(0, len(counts), wire.BATCH):
            rows = {
                count.route.subdomain: (count.requests, count.errors, count.bytes_in, count.bytes_out)
                for count in counts[at : at + wire.BATCH]
            }
            self._send(Counts(rows))

    # -- channel.End

    def heard(self, packet: bytes, passed: socket.socket | None) -> None:
        order = wire.order(packet)
        if isinstance(order, Done | Failed):
            self._gate.answered(order, passed)
            return
        if passed is not None:
            passed.close()
            raise Invalid("a socket nobody asked for")
        self._obey(order)

    def lost(self, why: str) -> None:
        self._gate.close()
        self.ended.set()

    def _obey(self, order: Order) -> None:
        match order:
            case VMs(rows):
                self._gate.saw_vms(row.sight() for row in rows)
            case Routes(rows):
                self._gate.saw_routes(row.route() for row in rows)
            case Gone(row):
                self._gate.route_gone(row.route())
            case Settings():
                logs.configure(order.log_level, order.log_format)
                self._settings = order
            case Serve():
                if self._settings is None or self._starting is not None:
                    raise Invalid("not now")
                self._starting = tasks.supervise(self._serve(self._settings), name="listen")
            case Drain():
                self.ended.set()

    async def _serve(self, settings: Settings) -> None:
        proxy = self._proxy = ProxyServer(
            self._gate,
            base_domains=settings.base_domains,
            wake_timeout_s=settings.wake_timeout_s,
            stream_idle_timeout_s=settings.stream_idle_timeout_s,
            fresh_slots=settings.fresh_slots,
            access_log=settings.access_log,
        )
        self._gate.forget = proxy.forget
        listening = False
        try:
            await proxy.start(settings.host, settings.port, shared=True)
            if settings.tls is not None:
                await self._serve_tls(proxy, settings.tls)
            listening = True
            self._send(Serving())
        except OSError as error:
            self._send(Unable(error.errno or errno.EIO, (error.strerror or str(error))[:300]))
        except Invalid as error:  # the files have changed since the daemon read them
            self._send(Unable(errno.EIO, str(error)[:300]))
        finally:
            if not listening:
                self.ended.set()

    async def _serve_tls(self, proxy: ProxyServer, tls: TLS) -> None:
        certificates = Certificates([Pair(Path(certificate), Path(key)) for certificate, key in tls.pairs])
        await proxy.start_tls(tls.host, tls.port, certificates.context, shared=True)
        self._watching = tasks.supervise(certificates.watch(), name="certificates")

    def _send(self, message: Report) -> None:
        self._channel.send(wire.encode(message))


def run() -> None:
    """The process. Its channel is its stdin, which is nobody else's."""
    with socket.socket(fileno=0) as sock, asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(work(sock))
