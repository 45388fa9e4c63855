"""What the proxy counts for each route, and writes down about an exchange if it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from hatchvm.edge.http.counters import RouteCounters
from hatchvm.edge.http.ledger import Ledger
from hatchvm.testing.stage import Stage, Wire

HOST = b"Host: app.hatch.local\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
TRACE = b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\n"


def get(*, more: bytes = b"") -> bytes:
    return b"GET /a/b?token=secret HTTP/1.1\r\n" + HOST + more + b"\r\n"


async def answers(wire: Wire) -> None:
    while True:
        await wire.head()
        await wire.send(OK)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage.open() as stage:
        yield stage


async def test_traffic_is_counted_for_each_route(stage: Stage) -> None:
    await stage.guest(answers)
    for _ in range(3):
        await stage.ask(get())
    (count,) = stage.proxy.ledger.counts.values()
    assert (count.route.subdomain, count.requests, count.errors) == ("app", 3, 0)
    assert count.bytes_out == 3 * len(OK)
    assert count.bytes_in > 3 * len(get())
    registry = CollectorRegistry()
    registry.register(RouteCounters(stage.proxy.ledger))
    labels = {"route": "rt-app", "subdomain": "app"}
    assert registry.get_sample_value("hatch_route_requests_total", labels) == 3
    assert registry.get_sample_value("hatch_route_sent_bytes_total", labels) == count.bytes_out
    renamed = replace(count.route, subdomain="shop")
    stage.proxy.ledger.saw_route(renamed, True)
    assert registry.get_sample_value("hatch_route_requests_total", labels | {"subdomain": "shop"}) == 3
    assert registry.get_sample_value("hatch_route_requests_total", labels) is None
    stage.proxy.ledger.saw_route(renamed, False)
    assert registry.get_sample_value("hatch_route_requests_total", labels | {"subdomain": "shop"}) is None
    assert not stage.proxy.ledger.counts


async def test_the_last_exchanges_of_a_route_that_is_gone_are_not_counted(stage: Stage) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def guest(wire: Wire) -> None:
        await wire.head()
        asked.set()
        await go.wait()
        await wire.send(OK)

    await stage.guest(guest)
    client = await stage.client()
    await client.send(get())
    await asked.wait()
    stage.proxy.ledger.saw_route(stage.gate.routes.pop("app"), False)
    go.set()
    assert (await client.answer())[1] == b"ok"
    client.end()
    assert await client.rest() == b""
    assert not stage.proxy.ledger.counts


async def test_a_request_keeps_the_id_it_came_with(stage: Stage) -> None:
    heard: list[bytes] = []

    async def guest(wire: Wire) -> None:
        while True:
            heard.append(await wire.head())
            await wire.send(OK)

    await stage.guest(guest)
    client = await stage.client()
    for line in (
        b"X-Request-Id: mine-1\r\n",
        b"",
        b"X-Request-ID: with a space\r\n",
        b"x-request-id: a\r\n" * 2,
        TRACE,
    ):
        await client.send(get(more=line))
        await client.answer()
    ids = [head.partition(b"X-Request-Id: ")[2].partition(b"\r\n")[0] for head in heard]
    assert (ids[0], ids[3]) == (b"mine-1", b"a,a")
    assert [ids[at].partition(b"-")[2] for at in (1, 2, 4)] == [b"1", b"2", b"3"]
    assert all(head.count(b"equest-I") == 1 for head in heard)
    assert TRACE in heard[-1], "trace context is the guest's business"


async def test_the_access_log_tells_what_happened_and_no_query(stage: Stage) -> None:
    stage.proxy.ledger.log_share = 1.0
    await stage.guest(answers)
    with capture_logs() as lines:
        await stage.ask(get(more=TRACE + b"X-Request-Id: mine\r\n"))
    (line,) = (line for line in lines if line["event"] == "request")
    assert line.pop("duration_ms") >= 0
    assert line.pop("bytes_in") > 0
    assert line == {
        "event": "request",
        "log_level": "info",
        "method": "GET",
        "host": "app.hatch.local",
        "path": "/a/b",
        "status": 200,
        "request_id": "mine",
        "route": "rt-app",
        "vm": "vm-app",
        "peer": "127.0.0.1",
        "bytes_out": len(OK),
        "woke": False,
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
    }


async def test_a_sample_still_holds_every_server_error(stage: Stage) -> None:
    stage.proxy.ledger.log_share = 1e-12
    await stage.guest(answers)
    with capture_logs() as lines:
        await stage.ask(get())
        await stage.ask(get().replace(b"app.", b"nobody."))
    assert [(line["host"], line["status"], line["route"]) for line in lines if line["event"] == "request"] == [
        ("nobody.hatch.local", 502, None)
    ]


async def test_a_ledger_hands_its_counts_to_another(stage: Stage) -> None:
    await stage.guest(answers)
    ours, theirs = stage.proxy.ledger, Ledger()
    for _ in range(2):
        await stage.ask(get())
        await stage.ask(get())
        for count in ours.take():
            theirs.add(count.route, count.requests, count.errors, count.bytes_in, count.bytes_out)
    (count,) = theirs.counts.values()
    assert (count.requests, count.errors, count.bytes_out) == (4, 0, 4 * len(OK))
    assert ours.take() == []
