"""The head parsers: what they refuse, and what they rewrite. `tests/fuzz` compares them with h11."""

from __future__ import annotations

import pytest

from hatchvm.edge.http.proto.fields import CHUNKED, REQUEST_FIELDS, Malformed
from hatchvm.edge.http.proto.request import Request, parse_request
from hatchvm.edge.http.proto.response import Response, parse_response

HOST = b"\r\nHost: app.hatch.local"
GET = b"GET / HTTP/1.1" + HOST
POST = b"POST / HTTP/1.1" + HOST


def parse(head: bytes) -> Request:
    return parse_request(head)


def answer(head: bytes, *, to: bytes = GET) -> Response:
    return parse_response(head, parse(to))


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(POST + b"\r\nContent-Length: 5\r\nTransfer-Encoding: chunked", id="CL and TE"),
        pytest.param(POST + b"\r\nTransfer-Encoding: chunked\r\nContent-Length: 5", id="TE and CL"),
        pytest.param(POST + b"\r\nContent-Length: 5\r\nContent-Length: 6", id="two lengths"),
        pytest.param(POST + b"\r\nContent-Length: 5\r\nContent-Length: 5", id="the same length twice"),
        pytest.param(POST + b"\r\nContent-Length: 5, 5", id="a list of lengths"),
        pytest.param(POST + b"\r\nContent-Length: +5", id="a signed length"),
        pytest.param(POST + b"\r\nContent-Length: -5", id="a negative length"),
        pytest.param(POST + b"\r\nContent-Length: 5 5", id="a spaced length"),
        pytest.param(POST + b"\r\nContent-Length: 0x5", id="a hexadecimal length"),
        pytest.param(POST + b"\r\nContent-Length: 1_0", id="a length for Python only"),
        pytest.param(POST + b"\r\nContent-Length:", id="an empty length"),
        pytest.param(POST + b"\r\nContent-Length: " + b"9" * 30, id="an endless length"),
        pytest.param(POST + b"\r\nContent_Length: 5", id="a length as CGI spells it"),
        pytest.param(POST + b"\r\nTransfer-Encoding: gzip, chunked", id="another coding"),
        pytest.param(POST + b"\r\nTransfer-Encoding: identity", id="identity"),
        pytest.param(POST + b"\r\nTransfer-Encoding: xchunked", id="an unknown coding"),
        pytest.param(POST + b"\r\nTransfer-Encoding: Chunked", id="a coding in capitals"),
        pytest.param(POST + b"\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked", id="two codings"),
        pytest.param(POST + b"\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity", id="two other codings"),
        pytest.param(POST + b"\r\nTransfer_Encoding: chunked", id="a coding as CGI spells it"),
        pytest.param(POST + b"\r\nTransfer-Encoding: \x0bchunked", id="a coding behind a control"),
        pytest.param(b"POST / HTTP/1.0" + HOST + b"\r\nTransfer-Encoding: chunked", id="chunks in HTTP/1.0"),
        pytest.param(GET + b"\r\nX-A: 1\r\n 2", id="a folded line"),
        pytest.param(b"GET / HTTP/1.1\r\n X-A: 1" + HOST, id="a folded first line"),
        pytest.param(GET + b"\r\nX-A : 1", id="a space before the colon"),
        pytest.param(GET + b"\r\nX A: 1", id="a space in a name"),
        pytest.param(GET + b"\r\n: 1", id="no name"),
        pytest.param(GET + b"\r\nX-A", id="no colon"),
        pytest.param(GET + b"\r\nX-\xe9: 1", id="a name beyond ASCII"),
        pytest.param(GET + b"\nX-A: 1", id="a bare LF"),
        pytest.param(GET + b"\rX-A: 1", id="a bare CR"),
        pytest.param(GET + b"\r\nX-A: 1\r", id="a bare CR at the end"),
        pytest.param(GET + b"\r\nX-A: \x00", id="NUL"),
        pytest.param(GET + b"\r\nX-A: \x7f", id="DEL"),
        pytest.param(GET + b"\r\nX-A: \x1b[1m", id="ESC"),
        pytest.param(GET + HOST, id="two hosts"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a@app.hatch.local", id="userinfo in Host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a.hatch.local, b.hatch.local", id="a list of hosts"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a.hatch.local/b", id="a path in Host"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: a b", id="a space in Host"),
        pytest.param(GET + b"\r\nConnection: Host", id="Connection names Host"),
        pytest.param(GET + b"\r\nConnection: close, content-length", id="Connection names the length"),
        pytest.param(GET + b"\r\nConnection: a b", id="Connection names nothing"),
        pytest.param(b"G(T / HTTP/1.1" + HOST, id="a bad method"),
        pytest.param(b" GET / HTTP/1.1" + HOST, id="a leading space"),
        pytest.param(b"GET  / HTTP/1.1" + HOST, id="two spaces"),
        pytest.param(b"GET / a HTTP/1.1" + HOST, id="a space in the target"),
        pytest.param(b"GET\t/ HTTP/1.1" + HOST, id="a tab in the request line"),
        pytest.param(b"GET /\xff HTTP/1.1" + HOST, id="a target beyond ASCII"),
        pytest.param(b"GET app HTTP/1.1" + HOST, id="a target without a slash"),
        pytest.param(b"GET * HTTP/1.1" + HOST, id="the asterisk for GET"),
        pytest.param(b"GET http://evil.hatch.local/ HTTP/1.1" + HOST, id="another authority"),
        pytest.param(b"GET http://a@app.hatch.local/ HTTP/1.1" + HOST, id="userinfo in the target"),
        pytest.param(b"GET ftp://app.hatch.local/ HTTP/1.1" + HOST, id="another scheme"),
        pytest.param(b"GET /" + HOST, id="no version"),
        pytest.param(b"GET / http/1.1" + HOST, id="a version in small letters"),
        pytest.param(b"\r\n" + GET, id="a leading blank line"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_refused_requests(head: bytes) -> None:
    with pytest.raises(Malformed) as refusal:
        parse(head)
    assert refusal.value.status == 400


def test_connect_is_not_supported() -> None:
    with pytest.raises(Malformed) as refusal:
        parse(b"CONNECT app.hatch.local:443 HTTP/1.1" + HOST)
    assert refusal.value.status == 501


@pytest.mark.parametrize(
    ("line", "sent"),
    [
        (b"GET /a%2fb/../c//?x=%00 HTTP/1.1", b"GET /a%2fb/../c//?x=%00 HTTP/1.1"),
        (b"GET http://APP.hatch.local/a?b HTTP/1.1", b"GET /a?b HTTP/1.1"),
        (b"GET http://app.hatch.local HTTP/1.1", b"GET / HTTP/1.1"),
        (b"GET http://app.hatch.local?b HTTP/1.1", b"GET /?b HTTP/1.1"),
        (b"OPTIONS http://app.hatch.local HTTP/1.1", b"OPTIONS * HTTP/1.1"),
        (b"OPTIONS * HTTP/1.1", b"OPTIONS * HTTP/1.1"),
        (b"GET / HTTP/1.0", b"GET / HTTP/1.1"),
    ],
)
def test_targets(line: bytes, sent: bytes) -> None:
    assert parse(line + HOST).head.split(b"\r\n")[0] == sent


def test_a_request_without_host_is_for_the_proxy_to_answer() -> None:
    assert parse(b"GET / HTTP/1.1").host == b""


def test_values_keep_their_bytes() -> None:
    line = b"\r\nX-A:  \xc3\xa9\tb "
    assert line + b"\r\n" in parse(GET + line).head


def test_the_names_it_remembers_are_bounded() -> None:
    for number in range(10_000):
        parse(GET + b"\r\nX-%d: 1" % number)
    parse(GET + b"\r\n" + b"x" * 10_000 + b": 1")
    assert sum(map(len, REQUEST_FIELDS._verdicts)) < 300_000
    assert b"X-Forwarded-For" not in parse(GET + b"\r\nX-Forwarded-For: 6.6.6.6").head


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip",
        b"HTTP/1.1 200 OK\r\nX-A: 1\r\n 2",
        b"HTTP/1.1 200 OK\r\nX-A: \x00",
        b"HTTP/1.1 200 OK\nX-A: 1",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 099 OK",
        b"HTTP/2 200 OK",
        b"ICY 200 OK",
        b"",
    ],
)
def test_refused_answers(head: bytes) -> None:
    with pytest.raises(Malformed):
        answer(head)


@pytest.mark.parametrize(
    ("head", "length"),
    [
        (b"HTTP/1.1 200 OK", None),
        (b"HTTP/1.1 200", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5", 5),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", CHUNKED),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 5", 0),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5", 0),
    ],
)
def test_answers_end_where_they_should(head: bytes, length: int | None) -> None:
    assert answer(head).length == length
