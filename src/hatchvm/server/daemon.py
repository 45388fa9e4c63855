"""The daemon: open, recover, serve, and when told to go leave the VMs running and end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.metadata import version
from typing import Final

import structlog
import uvicorn

from hatchvm.api.app import create_app
from hatchvm.base import tasks
from hatchvm.base.errors import HatchError, Unavailable
from hatchvm.control.reconcile import reconcile
from hatchvm.control.vms import upload
from hatchvm.domain.lifecycle import State
from hatchvm.edge.http.server import ProxyServer
from hatchvm.server import first_start
from hatchvm.server.config import Config
from hatchvm.server.wiring import Built, build
from hatchvm.telemetry import logs, metrics

_log = structlog.get_logger()

#: How long open API calls and sequences (a suspend, a wake) may take to end when the daemon is told to go.
_GRACE_S: Final = 10
_BACKLOG: Final = 2048
_TIDY_S: Final = 5.0

Say = Callable[[str], None]


class _API(uvicorn.Server):
    """Signals belong to the daemon, not to its API."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(config: Config, *, say: Say) -> None:
    """Run until SIGTERM or SIGINT. `say` prints lines for the person who started it. Raises HatchError."""
    told_to_go = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_go.set)
    async with running(config, say=say) as api:
        waiting = tasks.spawn(told_to_go.wait(), name="signals")
        await asyncio.wait([waiting, api], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
    _log.info(logs.STOPPED)


@asynccontextmanager
async def running(config: Config, *, say: Say) -> AsyncIterator[asyncio.Task[None]]:
    """The whole daemon inside a `with` block; yields the API's task, which ends by itself only if it fails."""
    built = build(config)
    try:
        await built.store.open()
        await first_start.ensure_key(built, say)
        await first_start.ensure_images(built, config, say)
        await reconcile(built.ctx)
        _export_gauges(built)
        await _say_what_is_missing(built, say)
        async with _doors(built, config, say) as api:
            duties = [
                tasks.supervise(built.idle.run(), name="idle monitor"),
                tasks.supervise(built.house.storage.run(), name="collect"),
                tasks.supervise(_tidy(built), name="tidy"),
            ]
            try:
                yield api
            finally:
                for duty in duties:
                    await tasks.cancel_and_wait(duty)
        await _settle(built)
    finally:
        await built.store.close()
        built.lock.close()


def base_url(config: Config, proxy_port: int) -> Callable[[str], str]:
    """subdomain -> URL. On loopback a `*.localhost` domain is preferred: it resolves everywhere without DNS."""
    domain = config.base_domain[0]
    if config.proxy_addr[0].startswith("127."):
        domain = next((name for name in config.base_domain if name.endswith("localhost")), domain)
    return lambda subdomain: f"http://{subdomain}.{domain}:{proxy_port}"


@asynccontextmanager
async def _doors(built: Built, config: Config, say: Say) -> AsyncIterator[asyncio.Task[None]]:
    """The proxy and the API, listening."""
    proxy = ProxyServer(
        built.gate,
        base_domains=config.base_domain,
        wake_timeout_s=config.proxy_wake_timeout,
        stream_idle_timeout_s=config.stream_idle_timeout,
    )
    with _naming("HATCH_HTTP_ADDR", config.http_addr):
        listener = _listen(*config.http_addr)
    with listener:
        with _naming("HATCH_PROXY_ADDR", config.proxy_addr):
            proxy_port = await proxy.start(*config.proxy_addr)
        api_port = listener.getsockname()[1]
        server = _API(_api_settings(built, base_url(config, proxy_port)))
        task = tasks.spawn(server.serve(sockets=[listener]), name="api")
        forgetting = tasks.supervise(_forget_sleepers(built, proxy), name="forget sleepers")
        _log.info(logs.STARTED, api_port=api_port, proxy_port=proxy_port, pid=os.getpid())
        say(f"Hatch serves its API on http://{config.http_addr[0]}:{api_port} (docs: /docs)")
        say(f"and your VMs on {base_url(config, proxy_port)('<subdomain>')}")
        try:
            yield task
        finally:
            server.should_exit = True
            await asyncio.wait([task])
            await tasks.cancel_and_wait(forgetting)
            await proxy.close()


def _api_settings(built: Built, base_url_for: Callable[[str], str]) -> uvicorn.Config:
    app = create_app(
        built.house,
        built.verifier,
        base_url_for=base_url_for,
        socket_path_for=lambda vm_id: str(built.paths.vm(vm_id).qmp),
        version=version("hatchvm"),
        registry=metrics.REGISTRY,
    )
    return uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=_GRACE_S, lifespan="off")


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


@contextmanager
def _naming(variable: str, address: tuple[str, int]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f"{address[0]}:{address[1]}"
        raise Unavailable(f"{variable}: cannot listen on {where}: {error.strerror or error}") from error


async def _settle(built: Built) -> None:
    """Let sequences under way end: killed ones would be finished or undone at the next start all the same."""
    for owner in built.ctx.owners:
        if owner.upload is not None:
            await tasks.cancel_and_wait(owner.upload)
        await owner.idle(_GRACE_S)
    await built.idle.flush()


async def _forget_sleepers(built: Built, proxy: ProxyServer) -> None:
    """Connections to a VM's ports end with its process; so does the proxy's memory of them."""
    async for event in built.ctx.bus.subscribe(None):
        if event.state is not State.RUNNING:
            proxy.forget(event.vm_id)


async def _tidy(built: Built) -> None:
    while True:
        await asyncio.sleep(_TIDY_S)
        await built.ctx.node.tidy()


async def _say_what_is_missing(built: Built, say: Say) -> None:
    """A host that cannot run VMs, or store snapshots, still serves what it can; `/readyz` says the same."""
    try:
        await built.house.ready()
    except HatchError as error:
        say(f"{error}; see: hatchvm doctor")
    if caution := built.caution():
        say(f"Take care: {caution}")


def _export_gauges(built: Built) -> None:
    for state in State:
        metrics.VMS.labels(state.value).set_function(lambda state=state: built.ctx.owners.count(state))  # type: ignore[misc]
    metrics.ROUTES.set_function(lambda: len(built.ctx.routes))
    metrics.UPLOADS_PENDING.set_function(lambda: len(upload.pending(built.ctx)))
    metrics.UPLOAD_OLDEST_PENDING_SECONDS.set_function(
        lambda: next((one.waited_s for one in upload.pending(built.ctx)), 0.0)
    )
