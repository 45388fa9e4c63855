"""What many idle clients and many routes take, and how soon a new route is seen. Hatch alone."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.proxy.cases import CASES
from bench.proxy.hatch import context
from bench.proxy.layout import BASE, Layout
from bench.proxy.peers import PEERS
from bench.proxy.programs import PROXY_CORE, resident_kib, running
from bench.proxy.upstreams import guests
from bench.report import Row, machine, median, percentile, publish
from hatchvm.control.gate import HouseGate
from hatchvm.edge.http.hosts import Hosts
from hatchvm.testing.stage import free_port

_IDLE: Final = 10_000
_IDLE_GOAL_MIB: Final = 150
_FEW, _MANY = 1_000, 100_000
_LOOK_UPS: Final = 50_000
_CHANGES: Final = 50
_CHANGE_GOAL_MS: Final = 50
_LATEST_S: Final = 10.0
_ASK: Final = f"GET /1k HTTP/1.1\r\nHost: r0.{BASE}\r\n\r\n".encode()


def run(folder: Path, *, rounds: int) -> None:
    """`rounds`: of looking up routes."""
    rows = [*_idle(folder), *_routes(folder), *_look_ups(folder, rounds), *_changes(folder)]
    publish("proxy-scale", f"Many clients and many routes ({machine()})", rows)


def _idle(folder: Path) -> list[Row]:
    """Each client has had an answer, and keeps its connection. What the kernel keeps for sockets is not in it."""
    with _proxy(folder / "idle", routes=1) as (port, child), contextlib.ExitStack() as stack:
        for _ in range(100):
            _client(port).close()
        before = resident_kib(child.pid)
        for _ in range(_IDLE):
            stack.enter_context(_client(port))
        if len(list(Path(f"/proc/{child.pid}/fd").iterdir())) < _IDLE:
            raise RuntimeError("clients were hung up on")
        grown_kib = resident_kib(child.pid) - before
        total_kib = resident_kib(child.pid)
    return [
        Row(f"{_IDLE} idle clients: growth", grown_kib / 1024, "MiB", _IDLE_GOAL_MIB),
        Row(f"{_IDLE} idle clients: the whole process", total_kib / 1024, "MiB"),
        Row("an idle client", grown_kib / _IDLE, "KiB"),
    ]


def _client(port: int) -> socket.socket:
    """A connection that has had its answer."""
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(_ASK)
    answer = client.recv(65536)
    while not answer.endswith(b"x" * CASES["plain"].size):
        got = client.recv(65536)
        if not got:
            raise RuntimeError(f"no whole answer, but {answer!r}")
        answer += got
    return client


def _routes(folder: Path) -> list[Row]:
    resident = []
    for routes in (1, _MANY):
        with _proxy(folder / f"{routes}-routes", routes=routes) as (_, child):
            resident.append(resident_kib(child.pid))
    return [Row(f"a route, of {_MANY}", (resident[1] - resident[0]) * 1024 / (_MANY - 1), "bytes")]


def _look_ups(folder: Path, rounds: int) -> list[Row]:
    """From a Host header to its route, hosts drawn at random."""
    costs: dict[int, list[float]] = {_FEW: [], _MANY: []}
    layouts = {routes: Layout(0, [0], routes) for routes in costs}
    find = {routes: Hosts(HouseGate(context(layouts[routes], folder)), [BASE]).route for routes in costs}
    draw = random.Random(0)
    for _ in range(rounds):
        for routes, taken in costs.items():
            hosts = [layouts[routes].host(draw.randrange(routes)).encode() for _ in range(_LOOK_UPS)]
            began = time.perf_counter()
            for host in hosts:
                find[routes](host)
            taken.append((time.perf_counter() - began) / _LOOK_UPS * 1e6)
    ratio = median([many / few for few, many in zip(costs[_FEW], costs[_MANY], strict=True)])
    return [
        *(Row(f"finding a route among {routes}", median(taken), "µs") for routes, taken in costs.items()),
        Row(f"finding a route among {_MANY} against {_FEW}", ratio, "ratio"),
    ]


def _changes(folder: Path) -> list[Row]:
    """From asking for a route until a request, sent again and again on one connection, takes it."""
    waits = []
    with _proxy(folder / "changes", routes=_FEW) as (port, child):
        assert child.stdin is not None
        client = http.client.HTTPConnection("127.0.0.1", port)
        for number in range(_CHANGES):
            began = time.perf_counter()
            child.stdin.write(f"new{number}\n")
            child.stdin.flush()
            while _status(client, f"new{number}.{BASE}") != 200:
                if time.perf_counter() > began + _LATEST_S:
                    raise RuntimeError("a new route was never seen")
            waits.append((time.perf_counter() - began) * 1000)
        client.close()
    return [
        Row("a new route is seen, p50", median(waits), "ms"),
        Row("a new route is seen, latest", percentile(waits, 1), "ms", _CHANGE_GOAL_MS),
    ]


def _status(client: http.client.HTTPConnection, host: str) -> int:
    client.request("GET", "/1k", headers={"Host": host})
    with client.getresponse() as answer:
        answer.read()
        return answer.status


@contextlib.contextmanager
def _proxy(folder: Path, *, routes: int) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Hatch before one guest; its port and process."""
    with guests(CASES["plain"], folder) as vms:
        layout = Layout(free_port(), vms, routes)
        argv = PEERS["hatch"].prepare(folder, layout)
        with running(argv, core=PROXY_CORE, port=layout.port, log=folder / "proxy.log") as child:
            yield layout.port, child
