"""Made-up conversations, in arbitrary pieces, with h11 as the second opinion. `make fuzz` goes on for minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hatchvm.testing.edge.conversation import Talk
from hatchvm.testing.edge.second_opinion import judge, judge_text, pieces, play

CORPUS: Final = sorted((Path(__file__).parent / "corpus").glob("*.talk"))
HOST: Final = b"Host: app.hatch.local"
GET: Final = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n\r\n"
OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

#: A busy machine is not a finding.
UNTIMED: Final = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

_seeds = st.integers(0, 2**16)
_bodies = st.sampled_from([b"a", b"hello", b"\r\n\r\n", b"0\r\n\r\n", GET, OK, b"\x00\xff" * 40])
_extensions = st.sampled_from([b""] * 4 + [b";a", b";a=b", b';a="b c"'])
_plain = st.sampled_from([b"X-A: 1", b"x-b:", b"Cookie: a=b; c", b"X-A: \xc3\xa9\t.", b"Accept: */*", b"X-Hop: 1"])
_own = st.sampled_from([b"Keep-Alive: 5", b"Connection: x-hop", b"Connection: keep-alive"])
_requests_only = st.sampled_from(
    [b"TE: trailers", b"Forwarded: for=a", b"X_Real_IP: b", b"Expect: 100-continue", b"X-Request-Id: a"]
)
_targets = st.sampled_from([b"/", b"/a%2f..//b?c=%00", b"http://app.hatch.local/x", b"HTTP://APP.hatch.local?q"])
_methods = st.sampled_from([b"GET", b"HEAD", b"POST", b"PUT", b"OPTIONS", b"DELETE", b"TRACE", b"BREW"])
_statuses = st.sampled_from(
    [b"200 OK", b"200", b"200 ", b"404 Not\tFound", b"204 None", b"304 Same", b"500 \xff", b"999 ?"]
)
_damage = st.sampled_from(
    b"\n|\r|\r\n|\x00|\x0b| |:|,|0|-|+|;|_|\r\n |\r\n\t|\x7f|\x80|\r\n\r\n|0\r\n\r\n|TE: x\r\n|Upgrade: a\r\n|"
    b"Host: b\r\n|Content-Length: 1\r\n|Content-Length: +1\r\n|Content_Length: 1\r\n|Transfer-Encoding: chunked\r\n|"
    b"Transfer-Encoding: identity\r\n|Connection: close\r\n|Connection: content-length\r\n".split(b"|")
)


@st.composite
def framed(draw: st.DrawFn) -> tuple[list[bytes], bytes]:
    """Field lines that say how long a body is, and that body."""
    body = draw(_bodies)
    match draw(st.sampled_from(["none", "empty", "length", "chunks"])):
        case "none":
            return [], b""
        case "empty":
            return [b"Content-Length: 0"], b""
        case "length":
            return [b"Content-Length:  %d " % len(body)], body
    chunks = b"".join(b"%x%s\r\n%s\r\n" % (len(part), draw(_extensions), part) for part in pieces(body, draw(_seeds)))
    trailer = draw(st.sampled_from([b"", b"X-Sum: 1\r\n", b"X-Sum: \xff\r\nx-more:\r\n"]))
    return [b"Transfer-Encoding: chunked"], chunks + b"0" + draw(_extensions) + b"\r\n" + trailer + b"\r\n"


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    lines, body = draw(framed())
    more = draw(st.lists(_plain | _own | _requests_only, max_size=3, unique_by=lambda line: line.partition(b":")[0]))
    fields = draw(st.permutations([HOST, *lines, *more]))
    return b"\r\n".join([draw(_methods) + b" " + draw(_targets) + b" HTTP/1.1", *fields, b"", body])


@st.composite
def answers(draw: st.DrawFn, *, bodiless: bool = False) -> bytes:
    lines, body = draw(framed())
    status = draw(_statuses)
    if bodiless or status[:3] in (b"204", b"304"):
        body = b""
    more = draw(st.lists(_plain | _own, max_size=3, unique_by=lambda line: line.partition(b":")[0]))
    interim = draw(st.sampled_from([b"", b"", b"HTTP/1.1 100 Go on\r\n\r\n", b"HTTP/1.1 103 Hints\r\nLink: a\r\n\r\n"]))
    return interim + b"\r\n".join([b"HTTP/1.1 " + status, *draw(st.permutations([*lines, *more])), b"", body])


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Something put in the place of a few bytes, here and there."""
    data = draw(whole)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(_damage) + data[at + draw(st.integers(0, 2)) :]
    return data


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_what_was_found_before(path: Path) -> None:
    judge_text(path.read_bytes())


@settings(UNTIMED, max_examples=150)
@given(st.lists(damaged(requests()), min_size=1, max_size=3), st.lists(damaged(answers()), max_size=3), _seeds)
def test_h11_reads_the_same(asked: list[bytes], said: list[bytes], seed: int) -> None:
    judge(b"".join(asked), said, seed)


@settings(UNTIMED, max_examples=100)
@given(st.data(), _seeds)
def test_nothing_proper_is_refused(data: st.DataObject, seed: int) -> None:
    asked = data.draw(requests())
    said = data.draw(answers(bodiless=asked.startswith(b"HEAD")))
    judge(asked + GET, [said, OK], seed)
    played = play(asked, [said], seed)
    assert played.exchanges[0].to_guest
    assert b'{"error": ' not in played.to_client
    assert not played.aborted


@settings(UNTIMED, max_examples=100)
@given(st.lists(st.binary(max_size=80), max_size=4), st.lists(st.binary(max_size=80), max_size=4), st.booleans())
def test_noise_is_answered_or_cut(client: list[bytes], guest: list[bytes], upgrade: bool) -> None:
    talk = Talk()
    if upgrade:
        talk.client(GET[:-2] + b"Connection: upgrade\r\nUpgrade: a\r\n\r\n")
    for data in client:
        talk.client(data)
    if talk.waits_for_guest:
        talk.connects()
    for data in guest:
        talk.guest(data)
    talk.guest_breaks()
    talk.client_vanishes()
    assert talk.over
