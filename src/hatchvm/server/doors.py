"""The doors: the HTTP proxy, the SSH gateway and the REST API, opened and closed together, told what happens to VMs."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog
import uvicorn

from hatchvm.api.app import create_app
from hatchvm.base import tasks
from hatchvm.base.errors import Unavailable
from hatchvm.domain.lifecycle import ENDED
from hatchvm.edge.http.counters import RouteCounters
from hatchvm.edge.http.ledger import Ledger
from hatchvm.edge.http.limits import FRESH_SLOTS
from hatchvm.edge.http.server import ProxyServer
from hatchvm.edge.http.tls.certificates import Certificates, Pair
from hatchvm.edge.http.workers.wire import TLS, Counts, Settings
from hatchvm.edge.ssh.gateway import SSHGateway
from hatchvm.server.config import Config, blaming
from hatchvm.server.wiring import Built
from hatchvm.server.workers.workers import Workers
from hatchvm.telemetry import logs, metrics

if TYPE_CHECKING:
    from hatchvm.edge.ssh.front.server import SSHFront

_log = structlog.get_logger()

#: How long open API calls may take to end when the daemon is told to go.
_GRACE_S: Final = 10
_BACKLOG: Final = 2048

Say = Callable[[str], None]


class _API(uvicorn.Server):
    """Signals belong to the daemon, not to its API."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def opened(
    built: Built, config: Config, certificates: Certificates | None, say: Say
) -> AsyncIterator[asyncio.Task[None]]:
    """Every door, listening; yields the API's task, which ends by itself only if it fails.

    `certificates`: of the TLS port; without them there is none.
    """
    ledger = Ledger()
    proxy = _proxy(built, config, ledger)
    if isinstance(proxy, ProxyServer):
        ledger = proxy.ledger
    built.ctx.routes.watchers.append(ledger.saw_route)
    counters = RouteCounters(ledger)
    metrics.REGISTRY.register(counters)
    with _naming("HATCH_HTTP_ADDR", config.http_addr):
        listener = _listen(*config.http_addr)
    with listener:
        tls_url = await _start_tls(proxy, certificates, config) if certificates else ""
        with _naming("HATCH_PROXY_ADDR", config.proxy_addr):
            proxy_port = await proxy.start(*config.proxy_addr)
        duties: list[asyncio.Task[None]] = []
        if certificates and isinstance(proxy, ProxyServer):  # workers watch theirs
            duties.append(tasks.supervise(certificates.watch(), name="certificates"))
        front = await _front(built, config)
        gateway = SSHGateway(built.gate, allowed=config.ssh_allowed_cidr, wake_timeout_s=config.wake_timeout)
        duties.append(tasks.supervise(_follow(built, gateway, proxy), name="follow VMs"))
        api_port = listener.getsockname()[1]
        server = _API(_api_settings(built, base_url(config, proxy_port)))
        task = tasks.spawn(server.serve(sockets=[listener]), name="api")
        _log.info(logs.STARTED, api_port=api_port, proxy_port=proxy_port, pid=os.getpid())
        say(f"Hatch serves its API on http://{config.http_addr[0]}:{api_port} (docs: /docs)")
        say(f"and your VMs on {base_url(config, proxy_port)('<subdomain>')}")
        if tls_url:
            say(f"with TLS on {tls_url}")
        try:
            yield task
        finally:
            metrics.REGISTRY.unregister(counters)
            server.should_exit = True
            await asyncio.wait([task])
            for duty in duties:
                await tasks.cancel_and_wait(duty)
            await asyncio.gather(proxy.close(), gateway.aclose(), *([front.close()] if front else []))


def certificates_of(config: Config) -> Certificates | None:
    """Those of the TLS port, if the configuration names any. Raises Invalid, naming the variables."""
    if not config.tls_cert:
        return None
    with blaming("HATCH_TLS_CERT, HATCH_TLS_KEY"):
        return Certificates([Pair(*pair) for pair in zip(config.tls_cert, config.tls_key, strict=True)])


async def _start_tls(proxy: ProxyServer | Workers, certificates: Certificates, config: Config) -> str:
    """Take the TLS port; the URL of VMs there, below the first base domain for which a certificate stands."""
    with _naming("HATCH_TLS_ADDR", config.tls_addr):
        if isinstance(proxy, Workers):
            port = await proxy.take_tls(*config.tls_addr)
        else:
            port = await proxy.start_tls(*config.tls_addr, certificates.context)
    _log.info(logs.TLS_LISTENING, port=port)
    domains = config.base_domain
    domain = next((name for name in domains if certificates.stand_for(f"any.{name}")), domains[0])
    return f"https://<subdomain>.{domain}:{port}"


def base_url(config: Config, proxy_port: int) -> Callable[[str], str]:
    """subdomain -> URL. On loopback a `*.localhost` domain is preferred: it resolves everywhere without DNS."""
    domain = config.base_domain[0]
    if config.proxy_addr[0].startswith("127."):
        domain = next((name for name in config.base_domain if name.endswith("localhost")), domain)
    return lambda subdomain: f"http://{subdomain}.{domain}:{proxy_port}"


def _proxy(built: Built, config: Config, ledger: Ledger) -> ProxyServer | Workers:
    """The proxy in this process, with a ledger of its own, or in processes of their own, which count into `ledger`."""

    def counted(report: Counts) -> None:
        for subdomain, counts in report.routes.items():
            if route := built.gate.route(subdomain):
                ledger.add(route, *counts)

    if config.proxy_workers:
        settings = partial(_worker_settings, config)
        return Workers(built.gate, built.feed, count=config.proxy_workers, settings=settings, counts=counted)
    return ProxyServer(
        built.gate,
        base_domains=config.base_domain,
        wake_timeout_s=config.proxy_wake_timeout,
        stream_idle_timeout_s=config.stream_idle_timeout,
        access_log=config.access_log,
    )


def _worker_settings(config: Config, host: str, port: int, tls_port: int | None) -> Settings:
    files = zip(config.tls_cert, config.tls_key, strict=True)
    pairs = [(str(Path(cert).absolute()), str(Path(key).absolute())) for cert, key in files]
    return Settings(
        host=host,
        port=port,
        base_domains=list(config.base_domain),
        wake_timeout_s=config.proxy_wake_timeout,
        stream_idle_timeout_s=config.stream_idle_timeout,
        # Together they knock at a guest no more often than one proxy does.
        fresh_slots=FRESH_SLOTS // config.proxy_workers,
        access_log=config.access_log,
        tls=None if tls_port is None else TLS(config.tls_addr[0], tls_port, pairs),
        log_level=config.log_level,
        log_format=logs.format_of(config.log_format),
    )


async def _follow(built: Built, gateway: SSHGateway, proxy: ProxyServer | Workers) -> None:
    """A VM's SSH port is open as long as the VM exists; connections to its ports end with its process.

    Workers know by themselves: see `edge.http.workers.gate`.
    """
    ports: dict[str, int] = {}

    def open_port(vm_id: str) -> None:
        owner = built.ctx.owners.find(vm_id)
        if owner is not None and owner.vm.ssh_port is not None:
            ports[vm_id] = owner.vm.ssh_port
            gateway.open(vm_id, owner.vm.ssh_port)

    for owner in built.ctx.owners:
        open_port(owner.vm.id)
    async for event in built.ctx.bus.subscribe(None):
        if event.type == "vm.deleted":
            gateway.close(ports.pop(event.vm_id, 0))
        elif event.vm_id not in ports:
            open_port(event.vm_id)
        if event.state in ENDED:
            gateway.forget(event.vm_id)
            if isinstance(proxy, ProxyServer):
                proxy.forget(event.vm_id)


async def _front(built: Built, config: Config) -> SSHFront | None:
    """The one SSH port for all VMs, if the configuration names one."""
    if config.ssh_addr is None:
        return None
    # Only here: asyncssh takes most of a second to import.
    from hatchvm.edge.ssh.front.server import SSHFront

    front = SSHFront(
        built.gate,
        built.house.ssh_keys,
        house_key=built.paths.house_key,
        host_key=built.paths.front_key,
        allowed=config.ssh_allowed_cidr,
        wake_timeout_s=config.wake_timeout,
    )
    with _naming("HATCH_SSH_ADDR", config.ssh_addr):
        await front.start(*config.ssh_addr)
    return front


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
