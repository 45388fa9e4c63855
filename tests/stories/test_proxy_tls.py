"""The proxy's TLS port with real clients, on both event loops."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import httpx2
import pytest
import uvloop
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve

from hatchvm.base.errors import Unavailable
from hatchvm.server import doors
from hatchvm.server.config import load
from hatchvm.testing.edge.tls import TLSStage, make_pair, trusting
from hatchvm.testing.http.h2 import run_curl
from hatchvm.testing.stage import Stage, Wire

HOST: Final = b"Host: app.hatch.local\r\n"
GET: Final = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
UPGRADE: Final = b"GET / HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: raw\r\n\r\n"
SWITCHED: Final = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: raw\r\nConnection: Upgrade\r\n\r\n"
VM: Final = "vm-app"
SIZE: Final = 20_000_000
MIB: Final = 1024 * 1024

Story = Callable[[TLSStage, Path], Awaitable[None]]
STORIES: Final[list[Story]] = []


def told(play: Story) -> Story:
    """One of the stories."""
    STORIES.append(play)
    return play


async def ok(wire: Wire) -> None:
    """A guest that answers everything without a body."""
    while True:
        await wire.head()
        await wire.send(OK)


def served(wire: Wire) -> str:
    """The common name of the certificate that a client was shown."""
    certificate = wire.writer.get_extra_info("peercert")
    return str(dict(pair for (pair,) in certificate["subject"])["commonName"])


@told
async def the_name_chooses_the_certificate(tls: TLSStage, _: Path) -> None:
    for name, certificate in [
        ("app.hatch.local", "wild"),
        ("one.hatch.local", "one"),
        ("other.example", "one"),
        ("first.example", "first"),
    ]:
        assert served(await tls.client(name)) == certificate
    tls.trusting.check_hostname = False
    for stranger in ["a.b.hatch.local", "hatch.local", "nobody.example", "127.0.0.1"]:
        assert served(await tls.client(stranger)) == "first", stranger
    assert served(await tls.client("")) == "first"


@told
async def requests_on_one_connection_that_the_guest_knows_to_be_secure(tls: TLSStage, _: Path) -> None:
    async def guest(wire: Wire) -> None:
        while True:
            head = await wire.head()
            assert b"\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Proto: https\r\n" in head
            await wire.send(OK)

    await tls.stage.guest(guest)
    client = await tls.client()
    await client.send(GET * 20)
    for _i in range(20):
        assert (await client.answer())[1] == b"ok"
    assert tls.stage.gate.dials == 1


@told
async def a_certificate_is_replaced_under_open_connections(tls: TLSStage, folder: Path) -> None:
    await tls.stage.guest(ok)
    old = await tls.client()
    await old.send(GET)
    await old.answer()
    new_one = make_pair(folder, "wild", ["*.hatch.local"])
    with pytest.raises(ssl.SSLCertVerificationError):
        await tls.client(context=trusting(new_one))
    tls.certificates.look()
    tls.certificates.look()
    with pytest.raises(ssl.SSLCertVerificationError):
        await tls.client()
    new = await tls.client(context=trusting(new_one))
    for client in (old, new):
        await client.send(GET)
        assert (await client.answer())[1] == b"ok"


@told
async def a_slow_guest_is_not_run_over(tls: TLSStage, _: Path) -> None:
    go = asyncio.Event()

    async def guest(wire: Wire) -> None:
        await wire.head()
        await go.wait()
        assert await wire.exactly(SIZE) == sent
        await wire.send(OK)

    sent = os.urandom(MIB) * (SIZE // MIB) + bytes(SIZE % MIB)
    await tls.stage.guest(guest)
    client = await tls.client()
    client.writer.write(b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % SIZE + sent)
    await client.settled()
    assert tls.stage.proxy.buffered_bytes < MIB
    go.set()
    assert (await client.answer())[1] == b"ok"


@told
async def a_slow_client_is_not_run_over(tls: TLSStage, _: Path) -> None:
    sent = os.urandom(MIB) * (SIZE // MIB) + bytes(SIZE % MIB)
    full = asyncio.Event()

    async def guest(wire: Wire) -> None:
        await wire.head()
        wire.writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE + sent)
        await wire.settled()
        assert wire.writer.transport.get_write_buffer_size() > MIB
        full.set()
        await wire.writer.drain()
        await wire.head()

    await tls.stage.guest(guest)
    client = await tls.client()
    await client.send(GET)
    await full.wait()
    assert tls.stage.proxy.buffered_bytes < MIB
    assert (await client.answer())[1] == sent


@told
async def a_web_socket(tls: TLSStage, _: Path) -> None:
    async def echo(socket: ServerConnection) -> None:
        async for message in socket:
            await socket.send(message)

    async with serve(echo, "127.0.0.1", 0, max_size=None) as server:
        tls.stage.gate.add("app", next(iter(server.sockets)).getsockname()[1])
        url = "wss://app.hatch.local/"
        async with connect(url, host="127.0.0.1", port=tls.port, ssl=tls.trusting, max_size=None) as client:
            messages: list[str | bytes] = ["text", b"\0\xff", bytes(MIB)]
            for message in messages:
                await client.send(message)
                assert await client.recv() == message


@told
async def each_side_of_a_raw_stream_ends_on_its_own(tls: TLSStage, _: Path) -> None:
    async def guest(wire: Wire) -> None:
        await wire.head()
        await wire.send(SWITCHED)
        assert await wire.rest() == b"question"
        await wire.send(b"answer")

    await tls.stage.guest(guest)
    client = await tls.by_hand()
    await client.send(UPGRADE + b"question")
    await client.end()
    assert await client.rest() == SWITCHED + b"answer"


@told
async def a_guest_that_has_said_all_still_listens(tls: TLSStage, _: Path) -> None:
    heard = asyncio.Event()

    async def guest(wire: Wire) -> None:
        await wire.head()
        await wire.send(SWITCHED)
        wire.end()
        assert await wire.rest() == b"last words"
        heard.set()

    await tls.stage.guest(guest)
    client = await tls.by_hand()
    await client.send(UPGRADE)
    assert await client.rest() == SWITCHED
    await client.send(b"last words")
    await client.end()
    await heard.wait()


@told
async def a_client_that_has_said_all_is_answered(tls: TLSStage, _: Path) -> None:
    await tls.stage.guest(ok)
    client = await tls.by_hand()
    await client.send(GET)
    await client.end()
    assert (await client.rest()).endswith(b"ok")


@told
async def a_client_leaves_without_close_notify(tls: TLSStage, _: Path) -> None:
    async def guest(wire: Wire) -> None:
        await wire.head()
        await wire.send(SWITCHED)
        assert await wire.rest() == b"words"

    await tls.stage.guest(guest)
    client = await tls.by_hand()
    await client.send(UPGRADE + b"words")
    await client.wire.exactly(1)
    client.wire.end()
    await tls.stage.gate.until_released(VM)


@told
async def a_client_that_hangs_up_during_a_wake_lets_go(tls: TLSStage, _: Path) -> None:
    await tls.stage.guest(ok)
    tls.stage.gate.asleep.add(VM)
    client = await tls.by_hand()
    await client.send(GET)
    await tls.stage.gate.until_needed(1)
    client.wire.reset()
    await tls.stage.gate.until_left(1)
    await tls.stage.gate.until_released(VM)


@told
async def an_early_answer_reaches_a_client_that_still_sends(tls: TLSStage, _: Path) -> None:
    answer = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig"

    async def guest(wire: Wire) -> None:
        await wire.head()
        await wire.send(answer)

    await tls.stage.guest(guest)
    client = await tls.by_hand()
    await client.send(b"PUT / HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % SIZE)
    for _i in range(64):
        await client.send(bytes(16384))
    assert (await client.rest()).endswith(b"\r\n\r\nbig")


@told
async def an_answer_that_breaks_off_is_seen_as_such(tls: TLSStage, _: Path) -> None:
    received = asyncio.Event()

    async def guest(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\n\r\nab")
        await received.wait()
        wire.reset()

    await tls.stage.guest(guest)
    client = await tls.client()
    await client.send(GET)
    await client.head()
    await client.exactly(2)
    received.set()
    with pytest.raises((ConnectionResetError, ssl.SSLError)):
        await client.rest()


@told
async def an_answer_without_a_length_ends_with_close_notify(tls: TLSStage, _: Path) -> None:
    async def guest(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\n\r\nwhole")

    await tls.stage.guest(guest)
    client = await tls.by_hand()
    await client.send(GET)
    assert (await client.rest()).endswith(b"\r\n\r\nwhole")


@told
async def who_does_not_speak_tls_is_told(tls: TLSStage, _: Path) -> None:
    client = await tls.tcp()
    await client.send(GET)
    head, body = await client.answer()
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert body == b'{"error": "this port speaks TLS; ask for https instead of http"}\n'
    assert await client.rest() == b""
    for rubbish in [b"SSH-2.0-OpenSSH_9.2\r\n", bytes(100), b"\x16\x03\x01\xff\xff" + bytes(70000)]:
        client = await tls.tcp()
        await client.send(rubbish)
        with suppress(ConnectionResetError):
            assert len(await client.rest()) < 10  # an alert, or nothing
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
    old.set_ciphers("AES128-SHA")  # no forward secrecy
    with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
        await tls.client(context=old)


@told
async def the_proxy_goes_down_without_waiting_for_anybodys_close_notify(tls: TLSStage, _: Path) -> None:
    asked = asyncio.Event()

    async def guest(wire: Wire) -> None:
        await wire.head()
        asked.set()
        await wire.send(OK)

    await tls.stage.guest(guest)
    tls.stage.proxy.limits = replace(tls.stage.proxy.limits, close_timeout_s=3600)
    idle, halfway = await tls.by_hand(), await tls.tcp()
    await halfway.send(b"\x16\x03\x01")
    await idle.send(GET)
    await asked.wait()
    await tls.stage.proxy.close()
    assert (await idle.rest()).endswith(b"ok")
    with suppress(ConnectionResetError):
        assert await halfway.rest() == b""


@told
async def httpx_and_curl(tls: TLSStage, folder: Path) -> None:
    await tls.stage.guest(ok)
    address = f"https://127.0.0.1:{tls.port}/"
    async with httpx2.AsyncClient(verify=tls.trusting) as client:
        for _i in range(3):
            answer = await client.get(
                address, headers={"Host": "app.hatch.local"}, extensions={"sni_hostname": "app.hatch.local"}
            )
            assert (answer.status_code, answer.text) == (200, "ok")
    name = "--resolve", f"app.hatch.local:{tls.port}:127.0.0.1", f"https://app.hatch.local:{tls.port}/"
    for protocol in ("2", "1.1"):
        own = "--cacert", str(folder / "wild.pem"), f"--http{protocol}", "-w", "%{http_version}"
        assert await run_curl(*own, *name) == b"ok" + protocol.encode()


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("story", STORIES)
def test_over_tls(story: Story, loop_factory: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path) -> None:
    async def play() -> None:
        first = make_pair(tmp_path, "first", ["first.example"])
        wild = make_pair(tmp_path, "wild", ["*.hatch.local"])
        one = make_pair(tmp_path, "one", ["one.hatch.local", "other.example"])
        async with TLSStage.open([first, wild, one]) as tls:
            await story(tls, tmp_path)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(play())


async def test_the_daemons_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its URL is below a domain that a certificate stands for; a port in use is told with its variable."""
    pair = make_pair(tmp_path, "c", ["*.hatch.localhost"])
    monkeypatch.setenv("HATCH_TLS_CERT", str(pair.certificate))
    monkeypatch.setenv("HATCH_TLS_KEY", str(pair.key))
    monkeypatch.setenv("HATCH_TLS_ADDR", "127.0.0.1:0")
    config = load()
    certificates = doors.certificates_of(config)
    assert certificates is not None
    async with Stage.open() as stage, Stage.open() as second:
        url = await doors._start_tls(stage.proxy, certificates, config)
        assert re.fullmatch(r"https://<subdomain>\.hatch\.localhost:\d+", url)
        taken = f"127.0.0.1:{url.rpartition(':')[2]}"
        monkeypatch.setenv("HATCH_TLS_ADDR", taken)
        with pytest.raises(Unavailable, match=f"^HATCH_TLS_ADDR: cannot listen on {taken}: .*in use"):
            await doors._start_tls(second.proxy, certificates, load())
