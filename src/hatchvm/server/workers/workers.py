"""The proxy as several processes that share one port: started, watched, and started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Final

import structlog

from hatchvm.base import tasks
from hatchvm.base.clock import Clock, SystemClock
from hatchvm.base.errors import Internal
from hatchvm.domain import backoff
from hatchvm.edge.http.workers.channel import pair
from hatchvm.edge.http.workers.wire import Counts, Settings
from hatchvm.ports.feed import Feed
from hatchvm.server.workers.link import Lender, Link
from hatchvm.telemetry import logs

_log = structlog.get_logger()

_MODULE: Final = "hatchvm.edge.http.workers"
#: Nothing of the daemon's settings, which hold secrets: a worker is told what it needs.
_KEPT: Final = ("PATH", "PYTHON", "LANG", "LC_")
#: A worker reports every second. One that says nothing for so long does not read either.
_SILENCE_S: Final = 10.0
#: It has an interpreter to start, on a host that may have just booted.
_BIRTH_S: Final = 60.0
#: Having lived so long, a worker that ends is no sign that the next one will.
_STEADY_S: Final = 60.0
#: A worker cuts what it has not finished after 3 s; one that does not is cut with it.
_END_S: Final = 5.0
#: How long workers that a killed daemon left may keep the port.
_TAKEN_S: Final = 2.0
_LOOK_S: Final = 0.05


class Workers:
    """`count` proxies over `gate`, in place of one `ProxyServer`. Start them once, close them once."""

    def __init__(
        self,
        gate: Lender,
        feed: Feed,
        *,
        count: int,
        settings: Callable[[str, int, int | None], Settings],
        counts: Callable[[Counts], None] = lambda _: None,
        clock: Clock | None = None,
        silence_s: float = _SILENCE_S,
    ) -> None:
        """`settings`: host, port, TLS port -> what a worker is told. `counts`: told what each has served.

        `silence_s`: a worker that says nothing for so long is ended.
        """
        self._gate = gate
        self._feed = feed
        self._count = count
        self._settings = settings
        self._counts = counts
        self._clock = clock or SystemClock()
        self._silence_s = silence_s
        self._reserved: list[socket.socket] = []
        self._tls_port: int | None = None
        self._keepers: list[asyncio.Task[None]] = []
        self._links: dict[int, Link] = {}
        self._closing = False

    @property
    def pids(self) -> list[int]:
        """Of the workers that live now."""
        return list(self._links)

    async def take_tls(self, host: str, port: int) -> int:
        """Before `start`, if they shall speak TLS there: return the port. Raises OSError if it is taken."""
        self._tls_port = await self._take(host, port)
        return self._tls_port

    async def start(self, host: str, port: int) -> int:
        """Return the port, which the system chose if `port` is 0, when all listen. Raises OSError if it is taken."""
        settings = self._settings(host, await self._take(host, port), self._tls_port)
        loop = asyncio.get_running_loop()
        firsts = [loop.create_future() for _ in range(self._count)]
        self._keepers = [tasks.supervise(self._keep(settings, first), name="keep a worker") for first in firsts]
        try:
            await asyncio.gather(*firsts)
        except BaseException:
            await self.close()
            raise
        return settings.port

    async def close(self) -> None:
        """Let exchanges under way end for a moment, then end every worker."""
        self._closing = True
        for link in list(self._links.values()):
            link.drain()
        if self._keepers:
            await asyncio.wait(self._keepers, timeout=_END_S)
        for keeper in self._keepers:
            await tasks.cancel_and_wait(keeper)
        for sock in self._reserved:
            sock.close()

    async def _take(self, host: str, port: int) -> int:
        sock = await _reserve(host, port)
        self._reserved.append(sock)
        return int(sock.getsockname()[1])

    async def _keep(self, settings: Settings, first: asyncio.Future[None]) -> None:
        """One worker after another. `first` is done when the first of them listens, or could not."""
        loop, failures = asyncio.get_running_loop(), 0
        while True:
            began = loop.time()
            why = await self._run(settings, first)
            if self._closing:
                return
            failures = 0 if loop.time() - began > _STEADY_S else failures + 1
            delay_s = backoff.delay_s(failures - 1)
            _log.error(logs.WORKER_ENDED, why=why, delay_s=delay_s)
            await asyncio.sleep(delay_s)

    async def _run(self, settings: Settings, first: asyncio.Future[None]) -> str:
        """The whole life of one worker; how it ended."""
        ours, its = pair()
        with its:
            process = await _spawn(its)
        link = self._links[process.pid] = Link(ours, self._gate, self._feed, self._clock, counts=self._counts)
        link.serving.add_done_callback(lambda serving: _pass_on(serving, first))
        link.begin(settings)
        watching = tasks.supervise(self._watch(process, link), name="watch a worker")
        try:
            code = await process.wait()
        finally:
            _kill(process)
            await process.wait()
            del self._links[process.pid]
            link.close()
            await tasks.cancel_and_wait(watching)
        why = f"{link.ended.result()} (exit code {code})".strip()
        if not first.done():
            first.set_exception(Internal("a proxy worker did not start", detail=why))
        return why

    async def _watch(self, process: asyncio.subprocess.Process, link: Link) -> None:
        """End a worker that has closed its channel, or does nothing."""
        loop = asyncio.get_running_loop()
        born_at = loop.time()
        while not link.ended.done():
            await asyncio.wait([link.ended], timeout=self._silence_s / 4)
            link.catch_up()
            patience = self._silence_s if link.heard_at is not None else _BIRTH_S
            if loop.time() - (link.heard_at or born_at) > patience:
                _log.error(logs.WORKER_LOST, pid=process.pid)
                link.close("it did not answer")
                _kill(process)
        await asyncio.sleep(_END_S)
        _kill(process)


async def _spawn(channel: socket.socket) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        _MODULE,
        stdin=channel.fileno(),
        stdout=asyncio.subprocess.DEVNULL,
        cwd="/",
        start_new_session=True,  # a Ctrl-C in the terminal is the daemon's to handle
        env={name: value for name, value in os.environ.items() if name.startswith(_KEPT)},
    )


def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGKILL)


def _pass_on(serving: asyncio.Future[OSError | None], first: asyncio.Future[None]) -> None:
    if first.done() or serving.cancelled():
        return
    if error := serving.result():
        first.set_exception(error)
    else:
        first.set_result(None)


async def _reserve(host: str, port: int) -> socket.socket:
    """The address, bound but not listened at: it stays ours whatever becomes of the workers.

    Workers may bind beside it, as it does not listen; a stranger that listens there is found. Raises OSError.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _TAKEN_S
    while True:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((host, port))
        except OSError:
            sock.close()
            if loop.time() > deadline:
                raise
            await asyncio.sleep(_LOOK_S)
        else:
            return sock
