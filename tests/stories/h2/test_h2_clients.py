"""HTTP/2 clients on real sockets: what they ask reaches an HTTP/1.1 guest, and its answers come back."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator

import pytest
from h2.errors import ErrorCodes

from hatchvm.base.tasks import spawn
from hatchvm.testing.http.h2 import H2Client, run_curl
from hatchvm.testing.stage import Stage, Wire

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\nX-Kind: plain\r\n\r\nok"
VM = "vm-app"
FORWARDED = {b"X-Forwarded-For: 127.0.0.1", b"X-Forwarded-Proto: http", b"X-Forwarded-Host: app.hatch.local"}


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with Stage.open() as stage:
        yield stage


async def answers(wire: Wire) -> None:
    while True:
        await wire.head()
        await wire.send(OK)


async def test_a_request_and_its_answer(stage: Stage) -> None:
    heard: list[bytes] = []

    async def guest(wire: Wire) -> None:
        heard.append(await wire.head())
        await wire.send(OK)

    await stage.guest(guest)
    client = await H2Client.open(stage)
    crumbs = [("cookie", "a=1"), ("x", "y"), ("cookie", "b=2")]
    answer = await client.answer(await client.ask(path="/a?b=%20", fields=crumbs))
    assert answer.fields == [(b":status", b"200"), (b"x-kind", b"plain"), (b"content-length", b"2")]
    assert answer.body == b"ok"
    start, *lines = heard[0][:-4].split(b"\r\n")
    assert start == b"GET /a?b=%20 HTTP/1.1"
    assert set(lines) > FORWARDED | {b"Host: app.hatch.local", b"x: y", b"cookie: a=1; b=2"}


async def test_many_streams_on_one_connection_share_pooled_guests(stage: Stage) -> None:
    await stage.guest(answers)
    client = await H2Client.open(stage)
    for _ in range(3):
        streams = [await client.ask() for _ in range(90)]
        for stream in streams:
            assert (await client.answer(stream)).body == b"ok"
    assert stage.gate.dials <= 90
    await stage.gate.until_released(VM)


async def test_answers_come_in_any_order(stage: Stage) -> None:
    second_done = asyncio.Event()

    async def guest(wire: Wire) -> None:
        if b"/slow" in await wire.head():
            await second_done.wait()
        await wire.send(OK)

    await stage.guest(guest)
    client = await H2Client.open(stage)
    slow, quick = await client.ask(path="/slow"), await client.ask(path="/quick")
    assert (await client.answer(quick)).body == b"ok"
    assert not client.answers[slow].ended
    second_done.set()
    assert (await client.answer(slow)).body == b"ok"


async def test_bodies_and_trailers_both_ways(stage: Stage) -> None:
    async def guest(wire: Wire) -> None:
        head = await wire.head()
        assert b"\r\nTransfer-Encoding: chunked\r\n" in head
        assert b"\r\nTE: trailers\r\n" in head
        assert await wire.exactly(29) == b"3\r\nabc\r\n3\r\ndef\r\n0\r\nsum: 6\r\n\r\n"
        await wire.send(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: sum\r\n\r\n")
        await wire.send(b"2;ext=1\r\nxy\r\n1\r\nz\r\n0\r\nSum: 3\r\n\r\n")

    await stage.guest(guest)
    client = await H2Client.open(stage)
    stream = await client.ask(method="POST", end=False, fields=[("te", "trailers")])
    await client.say(stream, b"abc")
    await client.say(stream, b"def")
    client.conn.send_headers(stream, [("sum", "6")], end_stream=True)
    await client.flush()
    answer = await client.answer(stream)
    assert answer.interim == [[(b":status", b"103"), (b"link", b"x")]]
    assert answer.fields == [(b":status", b"200"), (b"trailer", b"sum")]
    assert answer.body == b"xyz"
    assert answer.trailers == [(b"sum", b"3")]


async def test_a_body_of_told_length_goes_as_it_is(stage: Stage) -> None:
    async def guest(wire: Wire) -> None:
        head = await wire.head()
        assert b"\r\nContent-Length: 4\r\n" in head
        assert await wire.exactly(4) == b"body"
        await wire.send(OK)

    await stage.guest(guest)
    client = await H2Client.open(stage)
    stream = await client.ask(method="PUT", end=False, fields=[("content-length", "4")])
    await client.say(stream, b"body", end=True)
    assert (await client.answer(stream)).body == b"ok"


@pytest.mark.parametrize(
    ("method", "guest_says", "status", "body"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", 200, b""),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 99\r\n\r\n", 304, b""),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, b""),
        ("GET", b"HTTP/1.0 200 OK\r\n\r\nuntil the end", 200, b"until the end"),
    ],
)
async def test_framings(stage: Stage, method: str, guest_says: bytes, status: int, body: bytes) -> None:
    async def guest(wire: Wire) -> None:
        await wire.head()
        await wire.send(guest_says)

    await stage.guest(guest)
    client = await H2Client.open(stage)
    answer = await client.answer(await client.ask(method=method))
    assert (answer.status, bytes(answer.body), answer.reset) == (status, body, None)


async def test_refusals_are_answers(stage: Stage) -> None:
    client = await H2Client.open(stage)
    answer = await client.answer(await client.ask(authority="nobody.hatch.local"))
    assert answer.status == 502
    assert json.loads(answer.body) == {"error": 'no route for subdomain "nobody"'}
    connect = await client.ask(method="CONNECT", scheme="", path="", authority="app.hatch.local:80")
    assert (await client.answer(connect)).status == 501


async def test_a_malformed_request_costs_its_stream_only(stage: Stage) -> None:
    await stage.guest(answers)
    client = await H2Client.open(stage)
    for fields in [("x", "a\r\nb: c")], [("X", "y")], [("connection", "close")], [("host", "other")]:
        answer = await client.answer(await client.ask(fields=fields))
        assert answer.reset == ErrorCodes.PROTOCOL_ERROR
    assert (await client.answer(await client.ask())).body == b"ok"
    assert stage.gate.dials == 1


async def test_a_cut_answer_is_a_reset(stage: Stage) -> None:
    async def guest(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart")

    await stage.guest(guest)
    client = await H2Client.open(stage)
    answer = await client.answer(await client.ask())
    assert (answer.status, answer.reset) == (200, ErrorCodes.INTERNAL_ERROR)


async def test_an_early_answer_stops_the_request(stage: Stage) -> None:
    async def guest(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
        await wire.rest()

    await stage.guest(guest)
    client = await H2Client.open(stage)
    stream = await client.ask(method="POST", end=False)
    await client.say(stream, b"some")
    answer = await client.answer(stream)
    assert (answer.status, bytes(answer.body)) == (413, b"no")
    while answer.reset is None:
        await client.read()
    assert answer.reset == ErrorCodes.NO_ERROR
    await stage.gate.until_released(VM)


async def test_a_reset_lets_go_of_the_vm_and_of_the_guest(stage: Stage) -> None:
    asked, hung_up = asyncio.Event(), asyncio.Event()

    async def guest(wire: Wire) -> None:
        await wire.head()
        asked.set()
        try:
            await wire.rest()
        finally:
            hung_up.set()

    await stage.guest(guest)
    client = await H2Client.open(stage)
    stream = await client.ask()
    await asked.wait()
    client.conn.reset_stream(stream, ErrorCodes.CANCEL)
    await client.flush()
    await hung_up.wait()
    await stage.gate.until_released(VM)


async def test_a_sleeping_vm_wakes_for_all_streams(stage: Stage) -> None:
    await stage.guest(answers)
    stage.gate.asleep.add(VM)
    client = await H2Client.open(stage)
    streams = [await client.ask() for _ in range(5)]
    gone = await client.ask()
    await stage.gate.until_needed(6)
    client.conn.reset_stream(gone, ErrorCodes.CANCEL)
    await client.flush()
    await stage.gate.until_left(1)
    stage.gate.wake.set()
    for stream in streams:
        assert (await client.answer(stream)).body == b"ok"


async def test_an_upload_to_a_sleeping_vm_stays_at_the_client(stage: Stage) -> None:
    """Of 5 MB, no more is taken in than a window and the relay's backlog; all of it arrives after the wake."""
    size = 5_000_000

    async def guest(wire: Wire) -> None:
        await wire.head()
        await wire.exactly(size)
        await wire.send(OK)

    await stage.guest(guest)
    stage.gate.asleep.add(VM)
    client = await H2Client.open(stage)
    stream = await client.ask(method="POST", end=False, fields=[("content-length", str(size))])
    sent = await client.upload(stream, size)
    assert sent <= 512 * 1024
    assert 64 * 1024 < stage.proxy.buffered_bytes <= 512 * 1024
    stage.gate.wake.set()
    while sent < size:
        sent += await client.upload(stream, size - sent)
    await client.say(stream, b"", end=True)
    assert (await client.answer(stream)).body == b"ok"


async def test_a_client_that_does_not_read_holds_the_guest_back(stage: Stage) -> None:
    size = 20_000_000
    wires: list[Wire] = []

    async def guest(wire: Wire) -> None:
        if b"/small" in await wire.head():
            await wire.send(OK)
            return
        wires.append(wire)
        wire.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
        await wire.rest()

    await stage.guest(guest)
    client = await H2Client.open(stage, generous=False)
    stream = await client.ask()
    while len(client.answers[stream].body) < 65_535:
        await client.read()
    await wires[0].settled()
    assert stage.proxy.buffered_bytes < 1024 * 1024
    # The connection's window is used up as well: let it alone grow, and others are served.
    client.conn.increment_flow_control_window(1000)
    await client.flush()
    assert (await client.answer(await client.ask(path="/small"))).body == b"ok"
    client.conn.increment_flow_control_window(size)
    client.conn.increment_flow_control_window(size, stream)
    await client.flush()
    assert len((await client.answer(stream)).body) == size


async def test_drain_lets_streams_end_and_refuses_new_ones(stage: Stage) -> None:
    go = asyncio.Event()

    async def guest(wire: Wire) -> None:
        await wire.head()
        await go.wait()
        await wire.send(OK)

    await stage.guest(guest)
    client = await H2Client.open(stage)
    under_way = await client.ask()
    await stage.gate.until_held(VM, 1)
    closing = spawn(stage.proxy.close(), name="close")
    while client.goaway is None:
        await client.read()
    assert client.goaway == ErrorCodes.NO_ERROR
    late = await client.ask()
    assert (await client.answer(late)).reset == ErrorCodes.REFUSED_STREAM
    go.set()
    assert (await client.answer(under_way)).body == b"ok"
    await client.until_closed()
    await closing


async def test_a_silent_client_is_sent_away(stage: Stage) -> None:
    await stage.guest(answers)
    client = await H2Client.open(stage)
    assert (await client.answer(await client.ask())).body == b"ok"
    stage.pass_time(70)
    assert (await client.answer(await client.ask())).body == b"ok"
    stage.pass_time(80)
    await client.until_closed()
    assert client.goaway == ErrorCodes.NO_ERROR


async def test_answers_that_nobody_fetches_do_not_stay_for_ever(stage: Stage) -> None:
    async def guest(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 70000\r\n\r\n" + bytes(70000))

    await stage.guest(guest)
    client = await H2Client.open(stage, generous=False)
    stream = await client.ask()
    while len(client.answers[stream].body) < 65_535:
        await client.read()
    await stage.gate.until_released(VM)
    stage.pass_time(80)
    await client.until_closed()


async def test_a_client_that_says_goodbye_gets_its_answers_first(stage: Stage) -> None:
    go = asyncio.Event()

    async def guest(wire: Wire) -> None:
        await wire.head()
        await go.wait()
        await wire.send(OK)

    await stage.guest(guest)
    client = await H2Client.open(stage)
    stream = await client.ask()
    await stage.gate.until_held(VM, 1)
    await client.wire.send(b"\0\0\x08\x07\0\0\0\0\0" + bytes(8))  # GOAWAY
    go.set()
    assert (await client.answer(stream)).body == b"ok"
    await client.until_closed()


async def test_the_door_takes_the_first_bytes_in_pieces(stage: Stage) -> None:
    await stage.guest(answers)
    client = H2Client(await stage.client())
    client.conn.initiate_connection()
    greeting = client.conn.data_to_send()
    for at in range(len(greeting)):
        await client.wire.send(greeting[at : at + 1])
    assert (await client.answer(await client.ask())).body == b"ok"

    plain = await stage.client()
    await plain.send(b"P")
    await plain.send(b"RIDE / HTTP/1.1\r\nHost: app.hatch.local\r\n\r\n")
    assert (await plain.answer())[1] == b"ok"

    broken = await stage.client()
    await broken.send(b"PRI * HTTP/2.0\r\n")
    broken.end()
    assert b" 400 " in await broken.head()


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl here")
async def test_curl(stage: Stage) -> None:
    async def guest(wire: Wire) -> None:
        while True:
            head = await wire.head()
            if b"/upload" in head:
                assert b"\r\nContent-Length: 300000\r\n" in head
                assert await wire.exactly(300_000) == b"u" * 300_000
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 400000\r\n\r\n" + b"d" * 400_000)

    await stage.guest(guest)
    common = "--http2-prior-knowledge", "-H", "Host: app.hatch.local", "-w", "%{http_version}", "-H", "Expect:"
    url = f"http://127.0.0.1:{stage.port}"
    assert await run_curl(*common, f"{url}/a") == b"d" * 400_000 + b"2"
    assert (
        await run_curl(*common, f"{url}/upload", "--data-binary", "@-", stdin=b"u" * 300_000) == b"d" * 400_000 + b"2"
    )
    assert stage.gate.dials == 1
