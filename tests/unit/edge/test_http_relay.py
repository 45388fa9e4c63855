"""The relay's conversations: events in, commands out, top to bottom."""

from __future__ import annotations

import json

import pytest

from hatchvm.edge.http.proto.phase import Phase
from hatchvm.edge.http.proto.refusal import Refusal
from hatchvm.edge.http.proto.request import Request
from hatchvm.testing.edge.relay import (
    AbortClient,
    Again,
    Begin,
    CloseClient,
    Command,
    Conversation,
    EndClient,
    EndUpstream,
    Finish,
    SendClient,
    SendUpstream,
)

HOST = b"Host: app.hatch.local\r\n"
SEEN = b"X-Forwarded-For: 192.0.2.7\r\n"  # what the guest is told of the client
ADDED = b"X-Forwarded-Host: app.hatch.local\r\nX-Request-Id: r-1\r\n" + SEEN + b"\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"
GET_SENT = SendUpstream(b"GET / HTTP/1.1\r\n" + HOST + ADDED)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
WEBSOCKET = b"GET /ws HTTP/1.1\r\n" + HOST + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


@pytest.fixture
def relay() -> Conversation:
    return Conversation(forwarded=SEEN)


def request_of(commands: list[Command]) -> Request:
    (begin,) = commands
    assert isinstance(begin, Begin)
    return begin.request


def post(length: int, *, more: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n" % length + more + b"\r\n"


def post_sent(length: int, *, more: bytes = b"") -> bytes:
    return b"POST / HTTP/1.1\r\n" + HOST + more + b"Content-Length: %d\r\n" % length + ADDED


def asked(relay: Conversation, request: bytes, *, reused: bool = False) -> None:
    """Bring `relay` to the point where the guest has the request."""
    request_of(relay.client_data(request))
    relay.upstream_ready(reused=reused)


def refusal_in(command: Command) -> tuple[int, str]:
    """Status and sentence of an answer of our own."""
    assert isinstance(command, SendClient)
    head, _, body = command.data.partition(b"\r\n\r\n")
    assert b"Content-Type: application/json" in head
    assert b"Content-Length: %d" % len(body) in head
    return int(head.split()[1]), json.loads(body)["error"]


def test_a_request_and_its_answer(relay: Conversation) -> None:
    assert request_of(relay.client_data(GET)).host == b"app.hatch.local"
    assert relay.upstream_ready(reused=False) == [GET_SENT]
    assert relay.upstream_data(OK) == [SendClient(OK), Finish(reuse=True)]
    assert relay.phase is Phase.IDLE


def test_a_head_in_pieces_begins_once_it_is_whole(relay: Conversation) -> None:
    assert relay.client_data(GET[:20]) == []
    assert relay.client_data(GET[20:-1]) == []
    assert request_of(relay.client_data(GET[-1:])).method == b"GET"


def test_pipelined_requests_are_served_in_order(relay: Conversation) -> None:
    request_of(relay.client_data(GET + GET))
    assert relay.client_data(GET[:10]) == []
    relay.upstream_ready(reused=False)
    answer, finish, begin = relay.upstream_data(OK)
    assert [answer, finish] == [SendClient(OK), Finish(reuse=True)]
    assert isinstance(begin, Begin)
    assert relay.upstream_ready(reused=True) == [GET_SENT]
    assert relay.upstream_data(OK) == [SendClient(OK), Finish(reuse=True)]
    assert relay.phase is Phase.HEAD
    assert isinstance(relay.client_data(GET[10:])[0], Begin)


def test_a_body_waits_for_the_guest_then_streams(relay: Conversation) -> None:
    assert len(relay.client_data(post(6) + b"ab")) == 1
    relay.waking()
    assert relay.client_data(b"cd") == []
    assert relay.upstream_ready(reused=False) == [SendUpstream(post_sent(6) + b"abcd")]
    assert relay.client_data(b"ef") == [SendUpstream(b"ef")]
    assert relay.upstream_data(OK) == [SendClient(OK), Finish(reuse=True)]


def test_too_much_input_before_the_guest_is_there_is_a_backlog(relay: Conversation) -> None:
    seen = []
    for step in (post(10**6), b"x" * 70_000):
        relay.client_data(step)
        seen.append(relay.backlogged)
    relay.upstream_ready(reused=False)
    assert [*seen, relay.backlogged] == [False, True, False]


def test_chunks_and_trailers_pass_both_ways(relay: Conversation) -> None:
    head = b"POST / HTTP/1.1\r\n" + HOST
    body = b"3;x=y\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"
    relay.client_data(head + b"TE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    (sent,) = relay.upstream_ready(reused=False)
    added = b"Transfer-Encoding: chunked\r\nTE: trailers\r\nConnection: TE\r\n"
    assert sent == SendUpstream(head + added + ADDED + body)
    answer = b"HTTP/1.1 200 OK\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n" + body
    assert relay.upstream_data(answer) == [SendClient(answer), Finish(reuse=True)]


def test_expect_continue_is_between_client_and_guest(relay: Conversation) -> None:
    asked(relay, post(2, more=b"Expect: 100-continue\r\n"))
    assert relay.upstream_data(b"HTTP/1.1 100 Continue\r\n\r\n") == [SendClient(b"HTTP/1.1 100 Continue\r\n\r\n")]
    assert relay.client_data(b"ab") == [SendUpstream(b"ab")]
    assert relay.upstream_data(OK) == [SendClient(OK), Finish(reuse=True)]


def test_early_hints_come_before_the_answer(relay: Conversation) -> None:
    asked(relay, GET)
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    assert relay.upstream_data(hints + OK) == [SendClient(hints), SendClient(OK), Finish(reuse=True)]


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_answers_without_a_body(relay: Conversation, status: bytes) -> None:
    asked(relay, GET)
    answer = b"HTTP/1.1 " + status + b"\r\n\r\n"
    assert relay.upstream_data(answer) == [SendClient(answer), Finish(reuse=True)]


def test_an_answer_to_head_keeps_its_length_and_has_no_body(relay: Conversation) -> None:
    asked(relay, b"HEAD / HTTP/1.1\r\n" + HOST + b"\r\n")
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"
    assert relay.upstream_data(answer) == [SendClient(answer), Finish(reuse=True)]


def test_an_answer_that_ends_with_its_connection(relay: Conversation) -> None:
    asked(relay, GET)
    assert relay.upstream_data(b"HTTP/1.0 200 OK\r\n\r\nab") == [
        SendClient(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nab")
    ]
    assert relay.upstream_data(b"cd") == [SendClient(b"cd")]
    assert relay.upstream_eof() == [Finish(reuse=False), CloseClient(linger=False)]


def test_a_guest_that_says_close_is_not_asked_again(relay: Conversation) -> None:
    asked(relay, GET)
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    passed = SendClient(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert relay.upstream_data(answer) == [passed, Finish(reuse=False)]
    assert relay.phase is Phase.IDLE


def test_a_guest_that_says_too_much_is_not_asked_again(relay: Conversation) -> None:
    asked(relay, GET)
    assert relay.upstream_data(OK + b"HTTP/1.1 200 OK\r\n") == [SendClient(OK), Finish(reuse=False)]


def test_a_client_that_says_close_is_closed(relay: Conversation) -> None:
    asked(relay, b"GET / HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
    assert relay.upstream_data(OK) == [
        SendClient(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")),
        Finish(reuse=True),
        CloseClient(linger=False),
    ]


def test_hop_by_hop_fields_stay_on_their_hop(relay: Conversation) -> None:
    head = b"GET /a%2Fb//c?d HTTP/1.1\r\n" + HOST
    secrets = b"Keep-Alive: 1\r\nX-A: 1\r\nx_forwarded_for: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nTE: gzip\r\n"
    asked_for = head + b"Connection: x-a\r\n" + secrets + b"Cookie: a\r\nCookie: b\r\n\r\n"
    request_of(relay.client_data(asked_for))
    assert relay.upstream_ready(reused=False) == [SendUpstream(head + b"Cookie: a\r\nCookie: b\r\n" + ADDED)]
    kept = b"Set-Cookie: a\r\nSet-Cookie: b\r\n"
    answer = (
        b"HTTP/1.1 200 Fine\r\nConnection: x-b\r\n" + kept + b"X-B: 1\r\nKeep-Alive: 2\r\nContent-Length: 0\r\n\r\n"
    )
    passed = SendClient(b"HTTP/1.1 200 Fine\r\n" + kept + b"Content-Length: 0\r\n\r\n")
    assert relay.upstream_data(answer) == [passed, Finish(reuse=True)]


class TestHttp10:
    def test_closes_unless_asked_otherwise(self, relay: Conversation) -> None:
        asked(relay, b"GET / HTTP/1.0\r\n" + HOST + b"\r\n")
        assert relay.upstream_data(OK)[-1] == CloseClient(linger=False)

    def test_is_told_that_the_connection_stays(self, relay: Conversation) -> None:
        asked(relay, b"GET / HTTP/1.0\r\n" + HOST + b"Connection: Keep-Alive\r\n\r\n")
        told = OK.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n")
        assert relay.upstream_data(OK) == [SendClient(told), Finish(reuse=True)]

    def test_gets_neither_chunks_nor_interim_answers(self, relay: Conversation) -> None:
        asked(relay, b"GET / HTTP/1.0\r\n" + HOST + b"Connection: Keep-Alive\r\n\r\n")
        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n"
        assert relay.upstream_data(b"HTTP/1.1 103 Early Hints\r\n\r\n" + chunked) == [
            SendClient(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok")
        ]
        assert relay.upstream_data(b"0\r\nX-Sum: 1\r\n\r\n") == [Finish(reuse=True), CloseClient(linger=False)]


class TestRefusals:
    def test_the_house_says_no_and_the_connection_stays(self, relay: Conversation) -> None:
        relay.client_data(GET)
        no = Refusal(status=503, sentence="failed to wake vm", retry_after_s=1.2)
        finish, answer = relay.refused(no)
        assert finish == Finish(reuse=False)
        assert refusal_in(answer) == (503, "failed to wake vm")
        assert isinstance(answer, SendClient)
        assert b"\r\nRetry-After: 2\r\n" in answer.data
        assert relay.phase is Phase.IDLE

    def test_head_gets_the_refusal_without_its_body(self, relay: Conversation) -> None:
        relay.client_data(GET.replace(b"GET", b"HEAD"))
        _, answer = relay.refused(Refusal(status=502, sentence="vm not found"))
        assert isinstance(answer, SendClient)
        assert answer.data.endswith(b"\r\n\r\n")

    def test_with_a_body_on_its_way_the_answer_outlives_it(self, relay: Conversation) -> None:
        relay.client_data(post(100) + b"some")
        _, answer, close = relay.refused(Refusal(status=502, sentence="vm not found"))
        assert isinstance(answer, SendClient)
        assert b"\r\nConnection: close\r\n" in answer.data
        assert close == CloseClient(linger=True)
        assert relay.client_data(b"more") == []
        assert relay.client_eof() == [CloseClient(linger=False)]

    def test_a_head_that_is_too_slow(self, relay: Conversation) -> None:
        relay.client_data(GET[:9])
        answer, close = relay.deadline()
        assert refusal_in(answer)[0] == 408
        assert close == CloseClient(linger=True)

    @pytest.mark.parametrize("piece", [1000, 100_000])
    def test_a_head_that_is_too_large(self, relay: Conversation, piece: int) -> None:
        data = b"GET / HTTP/1.1\r\nX-A: " + b"a" * 99_000
        for at in range(0, len(data), piece):
            if commands := relay.client_data(data[at : at + piece]):
                break
        assert refusal_in(commands[0])[0] == 431

    def test_a_silent_guest(self, relay: Conversation) -> None:
        asked(relay, GET)
        finish, answer = relay.deadline()
        assert finish == Finish(reuse=False)
        assert refusal_in(answer) == (504, "upstream timed out")

    def test_a_stalled_body(self, relay: Conversation) -> None:
        asked(relay, post(5))
        _, answer, close = relay.deadline()
        assert refusal_in(answer)[0] == 408
        assert close == CloseClient(linger=True)

    def test_a_guest_that_talks_nonsense(self, relay: Conversation) -> None:
        asked(relay, GET)
        finish, answer = relay.upstream_data(b"SSH-2.0-OpenSSH\r\n\r\n")
        assert finish == Finish(reuse=False)
        assert refusal_in(answer)[0] == 502

    def test_a_bad_chunk_in_a_request(self, relay: Conversation) -> None:
        asked(relay, b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
        finish, answer, close = relay.client_data(b"zz\r\n")
        assert finish == Finish(reuse=False)
        assert refusal_in(answer)[0] == 400
        assert close == CloseClient(linger=True)

    def test_a_bad_chunk_in_an_answer(self, relay: Conversation) -> None:
        asked(relay, GET)
        relay.upstream_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert relay.upstream_data(b"zz\r\n") == [Finish(reuse=False), AbortClient()]


class TestDeadConnections:
    def test_a_fresh_one_without_a_byte_means_nobody_listens(self, relay: Conversation) -> None:
        asked(relay, GET)
        finish, answer = relay.upstream_eof()
        assert finish == Finish(reuse=False)
        assert refusal_in(answer) == (502, "upstream refused connection")

    def test_a_stale_one_is_replaced_once(self, relay: Conversation) -> None:
        asked(relay, GET, reused=True)
        assert relay.upstream_lost(broken=True) == [Again()]
        assert relay.upstream_ready(reused=False) == [GET_SENT]
        assert refusal_in(relay.upstream_lost(broken=True)[1])[0] == 502

    def test_not_for_a_request_that_may_have_been_carried_out(self, relay: Conversation) -> None:
        asked(relay, post(0), reused=True)
        assert refusal_in(relay.upstream_eof()[1])[0] == 502

    def test_not_when_a_part_of_the_body_is_gone(self, relay: Conversation) -> None:
        asked(relay, post(5).replace(b"POST", b"PUT") + b"ab", reused=True)
        assert refusal_in(relay.upstream_eof()[1])[0] == 502

    def test_nothing_of_the_body_is_gone_yet(self, relay: Conversation) -> None:
        asked(relay, post(5).replace(b"POST", b"PUT"), reused=True)
        assert relay.upstream_eof() == [Again()]
        assert relay.client_data(b"abcde") == []
        (sent,) = relay.upstream_ready(reused=False)
        assert isinstance(sent, SendUpstream)
        assert sent.data.endswith(b"\r\n\r\nabcde")

    def test_not_after_the_guest_said_something(self, relay: Conversation) -> None:
        asked(relay, GET, reused=True)
        relay.upstream_data(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert refusal_in(relay.upstream_eof()[1])[0] == 502

    @pytest.mark.parametrize("broken", [True, False])
    def test_amid_an_answer_the_client_must_notice(self, relay: Conversation, broken: bool) -> None:
        asked(relay, GET)
        relay.upstream_data(OK[:-1])
        assert relay.upstream_lost(broken=broken) == [Finish(reuse=False), AbortClient()]

    def test_a_reset_is_not_the_end_of_an_answer(self, relay: Conversation) -> None:
        asked(relay, GET)
        relay.upstream_data(b"HTTP/1.1 200 OK\r\n\r\nab")
        assert relay.upstream_lost(broken=True) == [Finish(reuse=False), AbortClient()]


class TestEarlyAnswer:
    def test_is_delivered_while_the_client_still_sends(self, relay: Conversation) -> None:
        asked(relay, post(10**6) + b"some")
        large = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n"
        assert relay.upstream_data(large) == [
            SendClient(large[:-2] + b"Connection: close\r\n\r\n"),
            Finish(reuse=False),
            CloseClient(linger=True),
        ]
        assert relay.client_data(b"more") == []
        assert relay.deadline() == [CloseClient(linger=False)]

    def test_the_rest_of_the_request_still_reaches_the_guest(self, relay: Conversation) -> None:
        asked(relay, post(4))
        relay.upstream_data(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        assert relay.client_data(b"ab") == [SendUpstream(b"ab")]
        assert relay.upstream_data(b"ab") == [SendClient(b"ab")]
        assert relay.client_data(b"cd") == [SendUpstream(b"cd")]
        assert relay.upstream_data(b"cd") == [SendClient(b"cd"), Finish(reuse=True), CloseClient(linger=False)]


class TestClientEnds:
    def test_between_requests(self, relay: Conversation) -> None:
        assert relay.client_eof() == [CloseClient(linger=False)]

    def test_during_a_wake(self, relay: Conversation) -> None:
        relay.client_data(GET)
        relay.waking()
        assert relay.client_eof() == [Finish(reuse=False), CloseClient(linger=False)]

    def test_after_its_request_the_guest_is_told(self, relay: Conversation) -> None:
        asked(relay, GET)
        assert relay.client_eof() == [EndUpstream()]
        assert relay.upstream_data(OK) == [SendClient(OK), Finish(reuse=False), CloseClient(linger=False)]

    def test_before_the_connection_is_there(self, relay: Conversation) -> None:
        relay.client_data(GET)
        assert relay.client_eof() == []
        assert relay.upstream_ready(reused=False) == [GET_SENT, EndUpstream()]

    def test_after_several_requests_all_are_answered(self, relay: Conversation) -> None:
        asked(relay, GET + GET)
        assert relay.client_eof() == []
        assert isinstance(relay.upstream_data(OK)[-1], Begin)
        assert relay.upstream_ready(reused=True) == [GET_SENT, EndUpstream()]
        assert relay.upstream_data(OK) == [SendClient(OK), Finish(reuse=False), CloseClient(linger=False)]

    def test_amid_its_head(self, relay: Conversation) -> None:
        relay.client_data(GET[:9])
        answer, close = relay.client_eof()
        assert refusal_in(answer) == (400, "the request ended early")
        assert close == CloseClient(linger=False)

    def test_amid_its_body(self, relay: Conversation) -> None:
        asked(relay, post(5))
        finish, answer, close = relay.client_eof()
        assert finish == Finish(reuse=False)
        assert refusal_in(answer)[0] == 400
        assert close == CloseClient(linger=False)

    def test_by_vanishing(self, relay: Conversation) -> None:
        asked(relay, GET)
        assert relay.client_lost() == [Finish(reuse=False)]
        assert relay.upstream_data(OK) == []

    def test_by_vanishing_between_requests(self, relay: Conversation) -> None:
        assert relay.client_lost() == []


class TestUpgrade:
    def test_bytes_flow_both_ways_and_each_end_is_passed_on(self, relay: Conversation) -> None:
        request_of(relay.client_data(WEBSOCKET + b"early"))
        (sent,) = relay.upstream_ready(reused=False)
        assert isinstance(sent, SendUpstream)
        assert b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" in sent.data
        assert relay.upstream_data(SWITCHED + b"hi") == [SendClient(SWITCHED + b"hi"), SendUpstream(b"early")]
        assert relay.client_data(b"\x00a") == [SendUpstream(b"\x00a")]
        assert relay.upstream_data(b"\x01b") == [SendClient(b"\x01b")]
        assert relay.client_eof() == [EndUpstream()]
        assert relay.upstream_data(b"bye") == [SendClient(b"bye")]
        assert relay.upstream_eof() == [Finish(reuse=False), CloseClient(linger=False)]

    def test_the_guest_may_end_first(self, relay: Conversation) -> None:
        asked(relay, WEBSOCKET)
        relay.upstream_data(SWITCHED)
        assert relay.upstream_eof() == [EndClient()]
        assert relay.client_data(b"a") == [SendUpstream(b"a")]
        assert relay.client_eof() == [Finish(reuse=False), CloseClient(linger=False)]

    def test_the_guest_may_decline(self, relay: Conversation) -> None:
        asked(relay, WEBSOCKET)
        assert relay.upstream_data(OK) == [SendClient(OK), Finish(reuse=True)]

    def test_an_upgrade_nobody_asked_for(self, relay: Conversation) -> None:
        asked(relay, GET)
        assert refusal_in(relay.upstream_data(SWITCHED)[1])[0] == 502

    def test_an_upgrade_amid_the_request(self, relay: Conversation) -> None:
        asked(relay, WEBSOCKET.replace(b"\r\n\r\n", b"\r\nContent-Length: 5\r\n\r\n"))
        finish, answer, close = relay.upstream_data(SWITCHED)
        assert finish == Finish(reuse=False)
        assert refusal_in(answer)[0] == 502
        assert close == CloseClient(linger=True)

    def test_a_broken_guest(self, relay: Conversation) -> None:
        asked(relay, WEBSOCKET)
        relay.upstream_data(SWITCHED)
        assert relay.upstream_lost(broken=True) == [Finish(reuse=False), AbortClient()]


class TestDrain:
    def test_an_idle_connection_closes(self, relay: Conversation) -> None:
        assert relay.drain() == [CloseClient(linger=False)]

    def test_a_busy_one_closes_after_its_answer(self, relay: Conversation) -> None:
        asked(relay, GET)
        assert relay.drain() == []
        assert relay.upstream_data(OK)[1:] == [Finish(reuse=True), CloseClient(linger=False)]
