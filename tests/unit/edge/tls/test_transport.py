"""The TLS layer between a scripted TCP transport and a scripted protocol: any cut of the stream, any rubbish in it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hatchvm.edge.http.tls.certificates import Certificates, Pair
from hatchvm.edge.http.tls.transport import TLSTransport
from hatchvm.testing.edge.tls import make_pair, trusting


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("tls"), "c", ["app.example.com"])


class TCP(asyncio.Transport):
    """Keeps what is written; `ended` and `gone` as TCP would see it."""

    def __init__(self) -> None:
        super().__init__()
        self.out = bytearray()
        self.ended = self.gone = False
        self.cut = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ended and not self.gone
        self.out += data

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.gone = True
        self.cut.set()

    abort = close

    def is_closing(self) -> bool:
        return self.gone


class Above(asyncio.Protocol):
    """Writes down what it is told. `keeps`: it goes on writing when the client has ended."""

    def __init__(self, *, keeps: bool = True) -> None:
        self.transport: asyncio.Transport | None = None
        self.heard = b""
        self.events: list[str] = []
        self._keeps = keeps

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, TLSTransport)
        self.transport = transport
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        assert data
        self.heard += data

    def eof_received(self) -> bool:
        self.events.append("eof")
        return self._keeps

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")


class Talk:
    """A client and the layer, with nothing between them but the test."""

    def __init__(self, pair: Pair, *, keeps: bool = True, timeout_s: float = 3600) -> None:
        self.tcp = TCP()
        self.above = Above(keeps=keeps)
        self.handshakes: set[TLSTransport] = set()
        self.layer = TLSTransport(
            Certificates([pair]).context, lambda: self.above, self.handshakes, handshake_timeout_s=timeout_s
        )
        self.layer.connection_made(self.tcp)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = trusting(pair).wrap_bio(self.incoming, self.outgoing, server_hostname="app.example.com")

    def said(self, act: Callable[[], object]) -> bytes:
        """What the client sends when it does that."""
        self.incoming.write(self.tcp.out)
        self.tcp.out.clear()
        with contextlib.suppress(ssl.SSLWantReadError):
            act()
        return self.outgoing.read()

    def shake_hands(self, cut: int = 1 << 20) -> None:
        while self.above.transport is None:
            self.feed(self.said(self.client.do_handshake), cut)

    def feed(self, data: bytes, cut: int = 1 << 20) -> None:
        for start in range(0, len(data), cut):
            self.layer.data_received(data[start : start + cut])

    def hear(self) -> bytes:
        """What the client reads, up to close_notify or the end of what there is."""
        self.incoming.write(self.tcp.out)
        self.tcp.out.clear()
        data = b""
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            while piece := self.client.read(65536):
                data += piece
        return data


def run(play: Callable[[], None]) -> None:
    """In a loop, for its timers."""

    async def inside() -> None:
        play()

    asyncio.run(inside())


@settings(max_examples=40, deadline=None)
@given(
    cut=st.integers(1, 400),
    up=st.lists(st.integers(1, 70_000), max_size=4),
    down=st.lists(st.integers(1, 200_000), max_size=4),
)
def test_any_cut_of_the_stream_is_the_same_stream(pair: Pair, cut: int, up: list[int], down: list[int]) -> None:
    def play() -> None:
        talk = Talk(pair)
        assert talk.handshakes == {talk.layer}
        talk.shake_hands(cut)
        assert not talk.handshakes
        sent = b""
        for number, size in enumerate(up):
            message = bytes([number]) * size
            for start in range(0, size, 16384):
                piece = message[start : start + 16384]
                talk.feed(talk.said(lambda piece=piece: talk.client.write(piece)), cut)  # type: ignore[misc]
            sent += message
        assert talk.above.heard == sent
        wanted = b"".join(bytes([number]) * size for number, size in enumerate(down))
        for number, size in enumerate(down):
            talk.layer.write(bytes([number]) * size)
        assert talk.hear() == wanted
        talk.layer.close()
        assert talk.tcp.gone

    run(play)


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 2000), rubbish=st.binary(min_size=1, max_size=300), cut=st.integers(1, 400))
def test_rubbish_anywhere_harms_nobody(pair: Pair, at: int, rubbish: bytes, cut: int) -> None:
    """Before, within or after the handshake: an end, or a wait for the rest of a record; never an exception."""

    def play() -> None:
        talk = Talk(pair)
        hello = talk.said(talk.client.do_handshake)
        talk.feed(hello[:at], cut)
        if at >= len(hello):
            talk.shake_hands()
            talk.feed(talk.said(lambda: talk.client.write(b"question")))
        heard = talk.above.heard
        talk.feed(rubbish, cut)
        assert talk.above.heard == heard
        if talk.above.transport:
            talk.layer.write(b"answer")
        talk.layer.close()
        talk.layer.connection_lost(None)
        assert not talk.handshakes

    run(play)


@pytest.mark.parametrize("keeps", [True, False])
def test_close_notify_ends_one_direction_if_the_protocol_wants_the_other(pair: Pair, keeps: bool) -> None:
    def play() -> None:
        talk = Talk(pair, keeps=keeps)
        talk.shake_hands()
        talk.feed(talk.said(lambda: talk.client.write(b"question")) + talk.said(talk.client.unwrap))
        assert (talk.above.heard, talk.above.events) == (b"question", ["made", "eof"])
        assert talk.tcp.gone is not keeps
        talk.layer.write(b"answer")
        assert talk.hear() == (b"answer" if keeps else b"")
        talk.feed(b"what comes after it is no TLS any more")
        assert talk.layer.eof_received() is True  # TCP's end follows, and is no news
        assert talk.above.events == ["made", "eof"]

    run(play)


def test_the_end_of_tcp_is_an_end_too(pair: Pair) -> None:
    def play() -> None:
        talk = Talk(pair)
        assert talk.layer.eof_received() is False  # amid the handshake: nobody is there yet
        talk = Talk(pair)
        talk.shake_hands()
        assert talk.layer.eof_received() is True
        assert talk.above.events == ["made", "eof"]
        talk.layer.write(b"answer")
        assert talk.hear() == b"answer"

    run(play)


def test_after_our_end_the_client_is_still_heard(pair: Pair) -> None:
    def play() -> None:
        talk = Talk(pair)
        talk.shake_hands()
        talk.layer.write(b"answer")
        talk.layer.write_eof()
        assert talk.tcp.ended
        assert talk.hear() == b"answer"
        talk.layer.write(b"too late")
        assert talk.hear() == b""
        talk.feed(talk.said(lambda: talk.client.write(b"late question")))
        assert talk.above.heard == b"late question"
        talk.feed(talk.said(talk.client.unwrap))
        assert talk.above.events == ["made", "eof"]

    run(play)


async def test_a_client_that_never_finishes_its_handshake_is_cut(pair: Pair) -> None:
    talk = Talk(pair, timeout_s=0.01)
    talk.feed(talk.said(talk.client.do_handshake)[:50])
    await talk.tcp.cut.wait()
    talk.layer.connection_lost(None)
    assert not talk.handshakes
    assert talk.above.events == []


def test_protocols_and_ciphers(pair: Pair) -> None:
    def play(version: ssl.TLSVersion, offered: list[str]) -> tuple[str | None, str | None, str]:
        talk = Talk(pair)
        context = trusting(pair)
        context.minimum_version = context.maximum_version = version
        context.set_alpn_protocols(offered)
        talk.client = context.wrap_bio(talk.incoming, talk.outgoing, server_hostname="app.example.com")
        talk.shake_hands()
        talk.feed(talk.said(talk.client.do_handshake))  # TLS 1.2's client is the last to know
        cipher = talk.client.cipher()
        assert cipher is not None
        return talk.client.version(), talk.client.selected_alpn_protocol(), cipher[0]

    async def inside() -> None:
        assert play(ssl.TLSVersion.TLSv1_3, ["http/1.1", "h2"])[:2] == ("TLSv1.3", "h2")
        version, protocol, cipher = play(ssl.TLSVersion.TLSv1_2, ["other"])
        assert (version, protocol) == ("TLSv1.2", None)
        assert cipher.startswith("ECDHE-ECDSA-")

    asyncio.run(inside())
