"""Rules for intermediaries that are easily forgotten. Where a rule is written is what each docstring says."""

from __future__ import annotations

import pytest

from hatchvm.testing.edge.conversation import Said, Talk

HOST = b"Host: app.hatch.local\r\n"
SEEN = b"X-Forwarded-For: 192.0.2.7\r\n"
ADDED = b"X-Forwarded-Host: app.hatch.local\r\nX-Request-Id: r-1\r\n" + SEEN + b"\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
GET_SENT = b"GET / HTTP/1.1\r\n" + HOST + ADDED
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
BEGIN = ("begin", b"app.hatch.local")
REUSE, DROP = ("finish", b"reuse"), ("finish", b"")
CLOSE, LINGER = ("close", b""), ("close", b"linger")


@pytest.fixture
def talk() -> Talk:
    return Talk(forwarded=SEEN)


def request(*fields: bytes, line: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join([line, HOST[:-2], *fields, b"", b""])


def sent_for(talk: Talk, asked: bytes) -> bytes:
    """What the guest gets of a request."""
    assert talk.client(asked) == [BEGIN]
    ((what, data),) = talk.connects()
    assert what == "to guest"
    return data


def status(said: Said) -> int:
    what, data = said
    assert what == "to client"
    return int(data.split()[1])


def body(data: bytes) -> Said:
    return "to client", data


@pytest.mark.parametrize("settings", [b"", b"HTTP2-Settings: AAMAAABk"])
def test_no_upgrade_to_http_2_reaches_a_guest(talk: Talk, settings: bytes) -> None:
    """RFC 9113 has removed the upgrade; a guest that took it would speak HTTP/2 past the relay."""
    fields = [b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", *filter(None, [settings])]
    assert sent_for(talk, request(*fields)) == GET_SENT


@pytest.mark.parametrize(
    ("te", "sent"),
    [(b"trailers", True), (b"gzip;q=0.5, Trailers", True), (b"gzip", False), (b"xtrailers", False), (b"", False)],
)
def test_te_says_trailers_or_nothing(talk: Talk, te: bytes, sent: bool) -> None:
    """RFC 9110, 10.1.4: a list of codings, of which `trailers` is one."""
    lines = b"TE: trailers\r\nConnection: TE\r\n" if sent else b""
    assert sent_for(talk, request(b"TE: " + te, b"Connection: TE")) == GET_SENT.replace(ADDED, lines + ADDED)


def test_chunks_from_http_1_0_end_with_the_connection(talk: Talk) -> None:
    """RFC 9112, 6.1: the framing is faulty, so the connection is closed afterwards."""
    sent_for(talk, GET)
    said = talk.guest(CHUNKS.replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"OK\r\n", b"OK\r\nConnection: keep-alive\r\n"))
    assert said[-1] == DROP or status(said[1]) == 502


def test_the_expectation_of_http_1_0_is_not_passed_on(talk: Talk) -> None:
    """RFC 9110, 10.1.1: the guest gets an HTTP/1.1 request and would believe it."""
    asked = request(b"Expect: 100-continue", b"Content-Length: 2", line=b"PUT / HTTP/1.0")
    assert b"Expect" not in sent_for(talk, asked)


def test_absolute_form_needs_no_host(talk: Talk) -> None:
    """RFC 9112, 3.2.2: the authority of the target is the host; an HTTP/1.0 client sends no Host."""
    assert talk.client(b"GET http://app.hatch.local/ HTTP/1.0\r\n\r\n") == [BEGIN]


def test_our_own_answers_have_a_date(talk: Talk) -> None:
    """RFC 9110, 6.6.1."""
    answer, _ = talk.client(b"GET / HTTP/1.1\r\nBad Name: 1\r\n\r\n")
    assert b"\r\nDate: " in answer[1]


def test_a_target_that_is_too_long(talk: Talk) -> None:
    """RFC 9112, 3."""
    answer, close = talk.client(b"GET /" + b"a" * 70_000)
    assert (status(answer), close) == (414, LINGER)


@pytest.mark.parametrize("version", [b"3.0", b"2.0", b"1.2", b"0.9"])
def test_another_version(talk: Talk, version: bytes) -> None:
    """RFC 9110, 15.6.6."""
    answer, close = talk.client(request(line=b"GET / HTTP/" + version))
    assert (status(answer), close) == (505, LINGER)


def test_upgrade_required_says_to_what(talk: Talk) -> None:
    """RFC 9110, 15.5.22."""
    sent_for(talk, GET)
    answer = b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
    assert talk.guest(answer) == [body(answer), REUSE]
