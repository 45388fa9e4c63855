"""The relay's conversations: events in, commands out, top to bottom."""

from __future__ import annotations

import json

import pytest

from hatchvm.edge.http.proto.phase import Phase
from hatchvm.edge.http.proto.refusal import Refusal
from hatchvm.testing.edge.conversation import (
    ABORT,
    AGAIN,
    CLOSE,
    DROP,
    END_CLIENT,
    END_GUEST,
    LINGER,
    REUSE,
    Said,
    Talk,
    to_client,
    to_guest,
)

BEGIN = ("begin", b"app.hatch.local")
HOST = b"Host: app.hatch.local\r\n"
SEEN = b"X-Forwarded-For: 192.0.2.7\r\n"  # what the guest is told of the client
ADDED = b"X-Forwarded-Host: app.hatch.local\r\nX-Request-Id: r-1\r\n" + SEEN + b"\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
GET_SENT = to_guest(b"GET / HTTP/1.1\r\n" + HOST + ADDED)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
WEBSOCKET = b"GET /ws HTTP/1.1\r\n" + HOST + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


@pytest.fixture
def talk() -> Talk:
    return Talk(forwarded=SEEN)


def post(length: int, *, more: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n" % length + more + b"\r\n"


def post_sent(length: int, *, more: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\n" + HOST + more + b"Content-Length: %d\r\n" % length + ADDED


def asked(talk: Talk, request: bytes, *, reused: bool = False) -> None:
    """Bring `talk` to the point where the guest has the request."""
    assert talk.client(request) == [BEGIN]
    talk.connects(reused=reused)


def refusal_in(command: Said) -> tuple[int, str]:
    """Status and sentence of an answer of our own."""
    what, data = command
    assert what == "to client"
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"Content-Type: application/json" in head
    assert b"Content-Length: %d" % len(body) in head
    return int(head.split()[1]), json.loads(body)["error"]


def test_a_request_and_its_answer(talk: Talk) -> None:
    assert talk.client(GET) == [BEGIN]
    assert talk.connects() == [GET_SENT]
    assert talk.guest(OK) == [to_client(OK), REUSE]
    assert talk.phase is Phase.IDLE


def test_a_head_in_pieces_begins_once_it_is_whole(talk: Talk) -> None:
    assert talk.client(GET[:20]) == []
    assert talk.client(GET[20:-1]) == []
    assert talk.client(GET[-1:]) == [BEGIN]


def test_pipelined_requests_are_served_in_order(talk: Talk) -> None:
    assert talk.client(GET + GET) == [BEGIN]
    assert talk.client(GET[:10]) == []
    talk.connects()
    assert talk.guest(OK) == [to_client(OK), REUSE, BEGIN]
    assert talk.connects(reused=True) == [GET_SENT]
    assert talk.guest(OK) == [to_client(OK), REUSE]
    assert talk.phase is Phase.HEAD
    assert talk.client(GET[10:]) == [BEGIN]


def test_a_body_waits_for_the_guest_then_streams(talk: Talk) -> None:
    assert len(talk.client(post(6) + b"ab")) == 1
    talk.wakes()
    assert talk.client(b"cd") == []
    assert talk.connects() == [to_guest(post_sent(6) + b"abcd")]
    assert talk.client(b"ef") == [to_guest(b"ef")]
    assert talk.guest(OK) == [to_client(OK), REUSE]


def test_too_much_input_before_the_guest_is_there_is_a_backlog(talk: Talk) -> None:
    seen = []
    for step in (post(10**6), b"x" * 70_000):
        talk.client(step)
        seen.append(talk.backlogged)
    talk.connects()
    assert [*seen, talk.backlogged] == [False, True, False]


def test_chunks_and_trailers_pass_both_ways(talk: Talk) -> None:
    head = b"POST / HTTP/1.1\r\n" + HOST
    body = b"3;x=y\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"
    talk.client(head + b"TE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    (sent,) = talk.connects()
    added = b"Transfer-Encoding: chunked\r\nTE: trailers\r\nConnection: TE\r\n"
    assert sent == to_guest(head + added + ADDED + body)
    answer = b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n" + body
    assert talk.guest(answer) == [to_client(answer), REUSE]


def test_expect_continue_is_between_client_and_guest(talk: Talk) -> None:
    asked(talk, post(2, more=b"Expect: 100-continue\r\n"))
    assert talk.guest(b"HTTP/1.1 100 Continue\r\n\r\n") == [to_client(b"HTTP/1.1 100 Continue\r\n\r\n")]
    assert talk.client(b"ab") == [to_guest(b"ab")]
    assert talk.guest(OK) == [to_client(OK), REUSE]


def test_early_hints_come_before_the_answer(talk: Talk) -> None:
    asked(talk, GET)
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    assert talk.guest(hints + OK) == [to_client(hints + OK), REUSE]


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_answers_without_a_body(talk: Talk, status: bytes) -> None:
    asked(talk, GET)
    answer = b"HTTP/1.1 " + status + b"\r\n\r\n"
    assert talk.guest(answer) == [to_client(answer), REUSE]


def test_an_answer_to_head_keeps_its_length_and_has_no_body(talk: Talk) -> None:
    asked(talk, b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n")
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"
    assert talk.guest(answer) == [to_client(answer), REUSE]


def test_an_answer_that_ends_with_its_connection(talk: Talk) -> None:
    asked(talk, GET)
    assert talk.guest(b"HTTP/1.0 200 OK\r\n\r\nab") == [to_client(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nab")]
    assert talk.guest(b"cd") == [to_client(b"cd")]
    assert talk.guest_ends() == [DROP, CLOSE]


def test_a_guest_that_says_close_is_not_asked_again(talk: Talk) -> None:
    asked(talk, GET)
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    passed = to_client(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert talk.guest(answer) == [passed, DROP]
    assert talk.phase is Phase.IDLE


def test_a_guest_that_says_too_much_is_not_asked_again(talk: Talk) -> None:
    asked(talk, GET)
    assert talk.guest(OK + b"HTTP/1.1 200 OK\r\n") == [to_client(OK), DROP]


def test_a_client_that_says_close_is_closed(talk: Talk) -> None:
    asked(talk, b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
    assert talk.guest(OK) == [
        to_client(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")),
        REUSE,
        CLOSE,
    ]


def test_hop_by_hop_fields_stay_on_their_hop(talk: Talk) -> None:
    head = b"GET /a%2Fb//c?d HTTP/1.1\r\n" + HOST
    secrets = b"Keep-Alive: 1\r\nX-A: 1\r\nx_forwarded_for: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nTE: gzip\r\n"
    asked_for = head + b"Connection: x-a\r\n" + secrets + b"Cookie: a\r\nCookie: b\r\n\r\n"
    assert talk.client(asked_for) == [BEGIN]
    assert talk.connects() == [to_guest(head + b"Cookie: a\r\nCookie: b\r\n" + ADDED)]
    kept = b"Set-Cookie: a\r\nSet-Cookie: b\r\n"
    answer = (
        b"HTTP/1.1 200 Fine\r\nConnection: x-b\r\n" + kept + b"X-B: 1\r\nKeep-Alive: 2\r\nContent-Length: 0\r\n\r\n"
    )
    passed = to_client(b"HTTP/1.1 200 Fine\r\n" + kept + b"Content-Length: 0\r\n\r\n")
    assert talk.guest(answer) == [passed, REUSE]


class TestHttp10:
    def test_closes_unless_asked_otherwise(self, talk: Talk) -> None:
        asked(talk, b"GET / HTTP/1.0\r\n" + HOST + b"\r\n")
        assert talk.guest(OK)[-1] == CLOSE

    def test_is_told_that_the_connection_stays(self, talk: Talk) -> None:
        asked(talk, b"GET / HTTP/1.0\r\n" + HOST + b"Connection: Keep-Alive\r\n\r\n")
        told = OK.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n")
        assert talk.guest(OK) == [to_client(told), REUSE]

    def test_gets_neither_chunks_nor_interim_answers(self, talk: Talk) -> None:
        asked(talk, b"GET / HTTP/1.0\r\n" + HOST + b"Connection: Keep-Alive\r\n\r\n")
        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"
        assert talk.guest(b"HTTP/1.1 103 Early Hints\r\n\r\n" + chunked) == [
            to_client(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok")
        ]
        assert talk.guest(b"0\r\nX-Sum: 1\r\n\r\n") == [REUSE, CLOSE]


class TestRefusals:
    def test_the_house_says_no_and_the_connection_stays(self, talk: Talk) -> None:
        talk.client(GET)
        no = Refusal(status=503, sentence="failed to wake vm", retry_after_s=1.2)
        finish, answer = talk.refuses(no)
        assert finish == DROP
        assert refusal_in(answer) == (503, "failed to wake vm")
        assert b"\r\nRetry-After: 2\r\n" in answer[1]
        assert talk.phase is Phase.IDLE

    def test_head_gets_the_refusal_without_its_body(self, talk: Talk) -> None:
        talk.client(GET.replace(b"GET", b"HEAD"))
        _, answer = talk.refuses(Refusal(status=502, sentence="vm not found"))
        assert answer[1].endswith(b"\r\n\r\n")

    def test_with_a_body_on_its_way_the_answer_outlives_it(self, talk: Talk) -> None:
        talk.client(post(100) + b"some")
        _, answer, close = talk.refuses(Refusal(status=502, sentence="vm not found"))
        assert b"\r\nConnection: close\r\n" in answer[1]
        assert close == LINGER
        assert talk.client(b"more") == []
        assert talk.client_ends() == [CLOSE]

    def test_a_head_that_is_too_slow(self, talk: Talk) -> None:
        talk.client(GET[:9])
        answer, close = talk.deadline()
        assert refusal_in(answer)[0] == 408
        assert close == LINGER

    @pytest.mark.parametrize("piece", [1000, 100_000])
    def test_a_head_that_is_too_large(self, talk: Talk, piece: int) -> None:
        data = b"GET / HTTP/1.1\r\nX-A: " + b"a" * 99_000
        for at in range(0, len(data), piece):
            if commands := talk.client(data[at : at + piece]):
                break
        assert refusal_in(commands[0])[0] == 431

    def test_a_silent_guest(self, talk: Talk) -> None:
        asked(talk, GET)
        finish, answer = talk.deadline()
        assert finish == DROP
        assert refusal_in(answer) == (504, "upstream timed out")

    def test_a_stalled_body(self, talk: Talk) -> None:
        asked(talk, post(5))
        _, answer, close = talk.deadline()
        assert refusal_in(answer)[0] == 408
        assert close == LINGER

    def test_a_guest_that_talks_nonsense(self, talk: Talk) -> None:
        asked(talk, GET)
        finish, answer = talk.guest(b"SSH-2.0-OpenSSH\r\n\r\n")
        assert finish == DROP
        assert refusal_in(answer)[0] == 502

    def test_a_bad_chunk_in_a_request(self, talk: Talk) -> None:
        asked(talk, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
        finish, answer, close = talk.client(b"zz\r\n")
        assert finish == DROP
        assert refusal_in(answer)[0] == 400
        assert close == LINGER

    def test_a_bad_chunk_in_an_answer(self, talk: Talk) -> None:
        asked(talk, GET)
        talk.guest(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert talk.guest(b"zz\r\n") == [DROP, ABORT]


class TestDeadConnections:
    def test_a_fresh_one_without_a_byte_means_nobody_listens(self, talk: Talk) -> None:
        asked(talk, GET)
        finish, answer = talk.guest_ends()
        assert finish == DROP
        assert refusal_in(answer) == (502, "upstream refused connection")

    def test_a_stale_one_is_replaced_once(self, talk: Talk) -> None:
        asked(talk, GET, reused=True)
        assert talk.guest_breaks() == [AGAIN]
        assert talk.connects() == [GET_SENT]
        assert refusal_in(talk.guest_breaks()[1])[0] == 502

    def test_not_for_a_request_that_may_have_been_carried_out(self, talk: Talk) -> None:
        asked(talk, post(0), reused=True)
        assert refusal_in(talk.guest_ends()[1])[0] == 502

    def test_not_when_a_part_of_the_body_is_gone(self, talk: Talk) -> None:
        asked(talk, post(5).replace(b"POST", b"PUT") + b"ab", reused=True)
        assert refusal_in(talk.guest_ends()[1])[0] == 502

    def test_nothing_of_the_body_is_gone_yet(self, talk: Talk) -> None:
        asked(talk, post(5).replace(b"POST", b"PUT"), reused=True)
        assert talk.guest_ends() == [AGAIN]
        assert talk.client(b"abcde") == []
        (sent,) = talk.connects()
        assert sent[1].endswith(b"\r\n\r\nabcde")

    def test_not_after_the_guest_said_something(self, talk: Talk) -> None:
        asked(talk, GET, reused=True)
        talk.guest(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert refusal_in(talk.guest_ends()[1])[0] == 502

    @pytest.mark.parametrize("reset", [True, False])
    def test_amid_an_answer_the_client_must_notice(self, talk: Talk, reset: bool) -> None:
        asked(talk, GET)
        talk.guest(OK[:-1])
        assert talk.guest_breaks(reset=reset) == [DROP, ABORT]

    def test_a_reset_is_not_the_end_of_an_answer(self, talk: Talk) -> None:
        asked(talk, GET)
        talk.guest(b"HTTP/1.1 200 OK\r\n\r\nab")
        assert talk.guest_breaks() == [DROP, ABORT]


class TestEarlyAnswer:
    def test_is_delivered_while_the_client_still_sends(self, talk: Talk) -> None:
        asked(talk, post(10**6) + b"some")
        large = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n"
        assert talk.guest(large) == [
            to_client(large[:-2] + b"Connection: close\r\n\r\n"),
            DROP,
            LINGER,
        ]
        assert talk.client(b"more") == []
        assert talk.deadline() == [CLOSE]

    def test_the_rest_of_the_request_still_reaches_the_guest(self, talk: Talk) -> None:
        asked(talk, post(4))
        talk.guest(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        assert talk.client(b"ab") == [to_guest(b"ab")]
        assert talk.guest(b"ab") == [to_client(b"ab")]
        assert talk.client(b"cd") == [to_guest(b"cd")]
        assert talk.guest(b"cd") == [to_client(b"cd"), REUSE, CLOSE]


class TestClientEnds:
    def test_between_requests(self, talk: Talk) -> None:
        assert talk.client_ends() == [CLOSE]

    def test_during_a_wake(self, talk: Talk) -> None:
        talk.client(GET)
        talk.wakes()
        assert talk.client_ends() == [DROP, CLOSE]

    def test_after_its_request_the_guest_is_told(self, talk: Talk) -> None:
        asked(talk, GET)
        assert talk.client_ends() == [END_GUEST]
        assert talk.guest(OK) == [to_client(OK), DROP, CLOSE]

    def test_before_the_connection_is_there(self, talk: Talk) -> None:
        talk.client(GET)
        assert talk.client_ends() == []
        assert talk.connects() == [GET_SENT, END_GUEST]

    def test_after_several_requests_all_are_answered(self, talk: Talk) -> None:
        asked(talk, GET + GET)
        assert talk.client_ends() == []
        assert talk.guest(OK)[-1] == BEGIN
        assert talk.connects(reused=True) == [GET_SENT, END_GUEST]
        assert talk.guest(OK) == [to_client(OK), DROP, CLOSE]

    def test_amid_its_head(self, talk: Talk) -> None:
        talk.client(GET[:9])
        answer, close = talk.client_ends()
        assert refusal_in(answer) == (400, "the request ended early")
        assert close == CLOSE

    def test_amid_its_body(self, talk: Talk) -> None:
        asked(talk, post(5))
        finish, answer, close = talk.client_ends()
        assert finish == DROP
        assert refusal_in(answer)[0] == 400
        assert close == CLOSE

    def test_by_vanishing(self, talk: Talk) -> None:
        asked(talk, GET)
        assert talk.client_vanishes() == [DROP]
        assert talk.guest(OK) == []

    def test_by_vanishing_between_requests(self, talk: Talk) -> None:
        assert talk.client_vanishes() == []


class TestUpgrade:
    def test_bytes_flow_both_ways_and_each_end_is_passed_on(self, talk: Talk) -> None:
        assert talk.client(WEBSOCKET + b"early") == [BEGIN]
        (sent,) = talk.connects()
        assert b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" in sent[1]
        assert talk.guest(SWITCHED + b"hi") == [to_client(SWITCHED + b"hi"), to_guest(b"early")]
        assert talk.client(b"\x00a") == [to_guest(b"\x00a")]
        assert talk.guest(b"\x01b") == [to_client(b"\x01b")]
        assert talk.client_ends() == [END_GUEST]
        assert talk.guest(b"bye") == [to_client(b"bye")]
        assert talk.guest_ends() == [DROP, CLOSE]

    def test_the_guest_may_end_first(self, talk: Talk) -> None:
        asked(talk, WEBSOCKET)
        talk.guest(SWITCHED)
        assert talk.guest_ends() == [END_CLIENT]
        assert talk.client(b"a") == [to_guest(b"a")]
        assert talk.client_ends() == [DROP, CLOSE]

    def test_the_guest_may_decline(self, talk: Talk) -> None:
        asked(talk, WEBSOCKET)
        assert talk.guest(OK) == [to_client(OK), REUSE]

    def test_an_upgrade_nobody_asked_for(self, talk: Talk) -> None:
        asked(talk, GET)
        assert refusal_in(talk.guest(SWITCHED)[1])[0] == 502

    def test_an_upgrade_amid_the_request(self, talk: Talk) -> None:
        asked(talk, WEBSOCKET.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n"))
        finish, answer, close = talk.guest(SWITCHED)
        assert finish == DROP
        assert refusal_in(answer)[0] == 502
        assert close == LINGER

    def test_a_broken_guest(self, talk: Talk) -> None:
        asked(talk, WEBSOCKET)
        talk.guest(SWITCHED)
        assert talk.guest_breaks() == [DROP, ABORT]


class TestDrain:
    def test_an_idle_connection_closes(self, talk: Talk) -> None:
        assert talk.drain() == [CLOSE]

    def test_a_busy_one_closes_after_its_answer(self, talk: Talk) -> None:
        asked(talk, GET)
        assert talk.drain() == []
        assert talk.guest(OK)[1:] == [REUSE, CLOSE]
