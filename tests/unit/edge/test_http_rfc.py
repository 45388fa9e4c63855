"""What RFC 9110 and 9112 ask of an intermediary, as conversations. The table is docs/internals/http-rules.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

from hatchvm.edge.http.proto.refusal import Refusal
from hatchvm.testing.edge.conversation import AGAIN, CLOSE, DROP, LINGER, REUSE, Said, Talk, to_client, to_guest

ROOT: Final = Path(__file__).parents[3]
HOST = b"Host: app.hatch.local\r\n"
SEEN = b"X-Forwarded-For: 192.0.2.7\r\n"
ADDED = b"X-Forwarded-Host: app.hatch.local\r\nX-Request-Id: r-1\r\n" + SEEN + b"\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
GET_SENT = b"GET / HTTP/1.1\r\n" + HOST + ADDED
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
BEGIN = ("begin", b"app.hatch.local")


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


class TestExpect:
    EXPECTS = request(b"Expect: 100-continue", b"Content-Length: 5", line=b"PUT / HTTP/1.1")

    def test_nothing_is_promised_while_the_vm_wakes(self, talk: Talk) -> None:
        assert talk.client(self.EXPECTS) == [BEGIN]
        assert talk.wakes() == []
        assert talk.client(b"hel") == []
        ((what, sent),) = talk.connects()
        assert (what, sent[-3:]) == ("to guest", b"hel")
        assert b"\r\nExpect: 100-continue\r\n" in sent
        assert talk.guest(b"HTTP/1.1 100 Continue\r\n\r\n") == [to_client(b"HTTP/1.1 100 Continue\r\n\r\n")]
        assert talk.client(b"lo") == [to_guest(b"lo")]
        assert talk.guest(OK) == [to_client(OK), REUSE]

    def test_a_failed_wake_is_told_instead(self, talk: Talk) -> None:
        talk.client(self.EXPECTS)
        talk.wakes()
        finish, answer, close = talk.refuses(Refusal(status=503, sentence="failed to wake vm"))
        assert (finish, status(answer), close) == (DROP, 503, LINGER)
        assert b"\r\nConnection: close\r\n" in answer[1]

    def test_a_guest_that_declines_gets_no_body(self, talk: Talk) -> None:
        sent_for(talk, self.EXPECTS)
        no = b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n"
        assert talk.guest(no) == [to_client(no[:-2] + b"Connection: close\r\n\r\n"), DROP, LINGER]
        assert talk.client(b"hello") == []


class TestAnswersWithoutContent:
    """RFC 9112, 6.3: the next answer begins right after the head."""

    @pytest.mark.parametrize("framing", [b"Content-Length: 99", b"Transfer-Encoding: chunked", b"X-Unknown: length"])
    def test_to_head(self, talk: Talk, framing: bytes) -> None:
        sent_for(talk, request(line=b"HEAD / HTTP/1.1"))
        answer = b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n"
        assert talk.guest(answer) == [to_client(answer), REUSE]
        assert sent_for(talk, GET) == GET_SENT

    def test_not_modified_keeps_the_length_it_speaks_of(self, talk: Talk) -> None:
        sent_for(talk, GET)
        answer = b"HTTP/1.1 304 Not Modified\r\nETag: a\r\nContent-Length: 99\r\n\r\n"
        assert talk.guest(answer) == [to_client(answer), REUSE]

    @pytest.mark.parametrize("framing", [b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"])
    def test_no_content_has_no_length(self, talk: Talk, framing: bytes) -> None:
        sent_for(talk, GET)
        answer = b"HTTP/1.1 204 No Content\r\n"
        assert talk.guest(answer + framing + b"\r\n") == [to_client(answer + b"\r\n"), REUSE]

    def test_every_interim_answer_passes(self, talk: Talk) -> None:
        sent_for(talk, GET)
        interim = b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 3
        assert talk.guest(interim) == [to_client(interim)]
        assert talk.guest(OK) == [to_client(OK), REUSE]


class TestUpgrade:
    def test_only_if_connection_says_so(self, talk: Talk) -> None:
        assert sent_for(talk, request(b"Upgrade: websocket")) == GET_SENT

    def test_not_from_http_1_0(self, talk: Talk) -> None:
        asked = request(b"Upgrade: websocket", b"Connection: Upgrade", line=b"GET / HTTP/1.0")
        assert sent_for(talk, asked) == GET_SENT

    def test_close_does_not_forbid_it(self, talk: Talk) -> None:
        asked = request(b"Upgrade: websocket", b"Connection: close, Upgrade")
        assert b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" in sent_for(talk, asked)
        switched = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        assert talk.guest(switched) == [to_client(switched)]
        assert talk.client(b"\x81\x00") == [to_guest(b"\x81\x00")]

    def test_close_holds_if_the_guest_declines(self, talk: Talk) -> None:
        sent_for(talk, request(b"Upgrade: websocket", b"Connection: close, Upgrade"))
        assert talk.guest(OK) == [to_client(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")), REUSE, CLOSE]

    def test_another_request_follows_a_declined_one(self, talk: Talk) -> None:
        sent_for(talk, request(b"Upgrade: websocket", b"Connection: Upgrade"))
        assert talk.guest(OK) == [to_client(OK), REUSE]
        assert sent_for(talk, GET) == GET_SENT


class TestHops:
    def test_connection_cannot_hide_who_the_client_is(self, talk: Talk) -> None:
        asked = request(b"Connection: X-Forwarded-For, X-Forwarded-Host", b"X-Forwarded-For: 6.6.6.6")
        assert sent_for(talk, asked) == GET_SENT

    @pytest.mark.parametrize(
        ("te", "sent"),
        [(b"trailers", True), (b"gzip;q=0.5, Trailers", True), (b"gzip", False), (b"", False)],
    )
    def test_te_says_trailers_or_nothing(self, talk: Talk, te: bytes, sent: bool) -> None:
        lines = b"TE: trailers\r\nConnection: TE\r\n" if sent else b""
        assert sent_for(talk, request(b"TE: " + te, b"Connection: TE")) == GET_SENT.replace(ADDED, lines + ADDED)

    @pytest.mark.parametrize(
        ("head", "finish"),
        [
            (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\n", REUSE),
            (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n", DROP),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: CLOSE\r\n\r\n", DROP),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close, keep-alive\r\n\r\n", DROP),
        ],
    )
    def test_which_guest_is_asked_again(self, talk: Talk, head: bytes, finish: Said) -> None:
        sent_for(talk, GET)
        assert talk.guest(head + b"ok") == [to_client(OK), finish]


class TestOldClients:
    def test_a_post_without_a_length_has_no_body(self, talk: Talk) -> None:
        asked = request(line=b"POST / HTTP/1.0")
        assert sent_for(talk, asked) == GET_SENT.replace(b"GET", b"POST")
        assert talk.client(b"left over") == []
        assert talk.guest(OK)[-1] == LINGER


class TestOrder:
    def test_what_follows_close_is_ignored(self, talk: Talk) -> None:
        assert talk.client(request(b"Connection: close") + GET) == [BEGIN]
        talk.connects()
        assert talk.guest(OK)[1:] == [REUSE, LINGER]
        assert talk.client(GET) == []

    def test_a_bad_request_waits_for_the_answer_before_it(self, talk: Talk) -> None:
        assert talk.client(GET + b"GET / HTTP/1.1\r\nBad Name: 1\r\n\r\n") == [BEGIN]
        talk.connects()
        answer, finish, refusal, close = talk.guest(OK)
        assert (answer, finish, status(refusal), close) == (to_client(OK), REUSE, 400, LINGER)

    def test_a_lost_guest_leaves_the_next_request_its_chance(self, talk: Talk) -> None:
        talk.client(GET + GET)
        talk.connects(reused=False)
        finish, refusal, begin = talk.guest_breaks()
        assert (finish, status(refusal), begin) == (DROP, 502, BEGIN)

    def test_a_client_that_vanishes_takes_its_pipeline_along(self, talk: Talk) -> None:
        talk.client(GET + GET)
        talk.connects()
        assert talk.client_vanishes() == [DROP]
        assert talk.guest(OK) == []


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"])
def test_repeated_on_a_stale_connection(talk: Talk, method: bytes) -> None:
    talk.client(request(line=method + b" / HTTP/1.1"))
    ((_, sent),) = talk.connects(reused=True)
    assert talk.guest_ends() == [AGAIN]
    assert talk.connects(reused=False) == [to_guest(sent)]


@pytest.mark.parametrize("method", [b"POST", b"PATCH", b"LOCK", b"get"])
def test_never_repeated(talk: Talk, method: bytes) -> None:
    talk.client(request(line=method + b" / HTTP/1.1"))
    talk.connects(reused=True)
    finish, answer = talk.guest_ends()
    assert (finish, status(answer)) == (DROP, 502)


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
    assert talk.guest(answer) == [to_client(answer), REUSE]


def test_the_table_names_tests_that_exist() -> None:
    table = (ROOT / "docs/internals/http-rules.md").read_text()
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in set(re.findall(r"`(test_\w+)`", table)) if f"def {name}(" not in tests] == []
