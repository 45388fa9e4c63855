"""What the relay made of a conversation, judged by h11: whatever the relay accepts, h11 accepts and understands alike.

The relay may refuse more, on purpose: obs-fold, bare LF, control characters, a repeated, listed or spaced length,
a length beside a coding, a coding not spelled `chunked`, white space after a chunk's size, trailers that are not for
trailers, a `Connection` that names what belongs to the message, a target that disagrees with Host, CONNECT. A request
without Host is accepted only to be answered by the house.
"""

from __future__ import annotations

import contextlib
import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import h11

from hatchvm.edge.http.proto.fields import Malformed
from hatchvm.edge.http.proto.request import parse_request
from hatchvm.testing.edge.conversation import OWN_ID, Said, Talk

#: In a corpus file: what the client says, then what each guest says.
GUESTS: Final = b"\n<<<<\n"
NEXT_GUEST: Final = b"\n----\n"
Head: TypeAlias = h11.Request | h11.Response | h11.InformationalResponse
_FORWARDED: Final = b"X-Forwarded-For: 192.0.2.7\r\n"
_LARGEST_HEAD: Final = 2**24
_OURS: Final = b'{"error": '
_AUTHORITY: Final = re.compile(rb"(?i)https?://[^/?#]*")
_NOT_END_TO_END: Final = frozenset(
    b"host content-length transfer-encoding connection upgrade te keep-alive proxy-connection proxy-authenticate "
    b"proxy-authorization".split()
)
_IDENTITY: Final = frozenset({b"forwarded", b"x-real-ip", b"x-request-id"})


@dataclass(frozen=True, slots=True)
class Message:
    """A message as h11 reads it."""

    head: Head
    interim: list[int]  # statuses of answers before the final one
    body: bytes
    trailers: list[tuple[bytes, bytes]]
    whole: bool
    rest: bytes  # what follows it
    keep_alive: bool


@dataclass(slots=True)
class Exchange:
    """One request that the relay accepted."""

    guest: bytes | None  # what the guest said; None: the house answered
    guest_ended: bool = False
    to_guest: bytes = b""
    reuse: bool = False


@dataclass(slots=True)
class Played:
    """A conversation that is over."""

    exchanges: list[Exchange] = field(default_factory=list)
    to_client: bytes = b""
    aborted: bool = False
    log: list[Said] = field(default_factory=list)


# -- reading with h11


def read_request(data: bytes) -> Message | None:
    """The first request in `data`; None if h11 refuses its head or it is not whole."""
    return _read(h11.Connection(h11.SERVER, max_incomplete_event_size=_LARGEST_HEAD), data, end=False)


def read_answer(data: bytes, asked: h11.Request, *, end: bool) -> Message | None:
    """The answer to `asked` in `data`. `end`: the connection ended after `data`."""
    peer = h11.Connection(h11.CLIENT, max_incomplete_event_size=_LARGEST_HEAD)
    upgrade = [(b"upgrade", value) for value in _values(asked, b"upgrade")]
    peer.send(h11.Request(method=asked.method, target="/", headers=[(b"host", b"a"), *upgrade]))
    peer.send(h11.EndOfMessage())
    return _read(peer, data, end=end)


def _read(peer: h11.Connection, data: bytes, *, end: bool) -> Message | None:
    head: Head | None = None
    interim: list[int] = []
    body = bytearray()
    trailers: list[tuple[bytes, bytes]] = []
    whole = False
    for event in _events(peer, data, end=end):
        match event:
            case h11.InformationalResponse(status_code=status) if status != 101:
                interim.append(status)
            case h11.Request() | h11.Response() | h11.InformationalResponse():
                head = event
            case h11.Data():
                body += event.data
            case h11.EndOfMessage():
                whole, trailers = True, list(event.headers)
    if head is None:
        return None
    whole = whole or isinstance(head, h11.InformationalResponse)
    keep_alive = h11.MUST_CLOSE is not peer.their_state
    return Message(head, interim, bytes(body), trailers, whole, peer.trailing_data[0], keep_alive)


def _events(peer: h11.Connection, data: bytes, *, end: bool) -> Iterator[object]:
    with contextlib.suppress(h11.RemoteProtocolError):
        peer.receive_data(data)
        ended = not end
        while True:
            event = peer.next_event()
            if event is h11.NEED_DATA and not ended:
                ended = True
                peer.receive_data(b"")
                continue
            if event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return
            yield event
            if isinstance(event, h11.EndOfMessage):
                return


# -- playing


def pieces(data: bytes, seed: int | None) -> list[bytes]:
    """`data` cut at places that `seed` chooses: 0 cuts everywhere, None nowhere."""
    if not data:
        return []
    if seed is None:
        return [data]
    if seed == 0:
        return [data[at : at + 1] for at in range(len(data))]
    chance = random.Random(seed)
    at, out = 0, []
    while at < len(data):
        size = chance.choice((1, 2, 3, 7, 30, 200, 5000))
        out.append(data[at : at + size])
        at += size
    return out


def play(
    client: bytes, guests: list[bytes], seed: int | None, *, interleaved: bool = False, pooled: bool = False
) -> Played:
    """The conversation to its end. A guest says its part, then ends; the client ends last.

    Not `interleaved`: the guests speak when the client has said everything. `pooled`: see `Talk`.
    """
    talk = Talk(forwarded=_FORWARDED, pooled=pooled)
    answering = _Guests(guests, seed)
    if not interleaved:
        for piece in pieces(client, seed):
            talk.client(piece)
        answering.answer(talk)
    else:
        chance = random.Random(seed)
        for piece in pieces(client, seed):
            talk.client(piece)
            if chance.random() < 0.4:
                answering.answer(talk, some=chance.randrange(3))
        answering.answer(talk)
    talk.client_ends()
    answering.answer(talk)
    assert talk.over or not talk.open, "an exchange never ended"
    if not talk.over:
        talk.deadline()
    assert talk.over, "the connection never ended"
    return answering.report(talk.log)


class _Guests:
    """The guests of one conversation, one for each request."""

    def __init__(self, parts: list[bytes], seed: int | None) -> None:
        self._parts = iter(parts)
        self._seed = seed
        self._saying: list[bytes] = []
        self._exchanges: list[Exchange] = []

    def answer(self, talk: Talk, *, some: int | None = None) -> None:
        """Speak until no request is open, or until `some` pieces were said."""
        said = 0
        while True:
            if talk.waits_for_guest:
                talk.connects()
            if talk.begun > len(self._exchanges):
                self._saying = pieces(next(self._parts, b""), self._seed)
                self._exchanges += [Exchange(b"") for _ in range(talk.begun - len(self._exchanges))]
            if not talk.open or said == some or self._exchanges[-1].guest_ended:
                return
            said += 1
            self._speak(talk)

    def _speak(self, talk: Talk) -> None:
        exchange = self._exchanges[-1]
        if self._saying:
            piece = self._saying.pop(0)
            exchange.guest = (exchange.guest or b"") + piece
            talk.guest(piece)
        else:
            exchange.guest_ended = True
            talk.guest_ends()

    def report(self, log: list[Said]) -> Played:
        """The log by exchange."""
        played = Played(log=log)
        exchanges = iter(self._exchanges)
        for what, data in log:
            if what == "begin":
                played.exchanges.append(next(exchanges) if data else Exchange(None))
            elif what == "to guest":
                played.exchanges[-1].to_guest += data
            elif what == "to client":
                played.to_client += data
            elif what == "finish":
                played.exchanges[-1].reuse = data == b"reuse"
            elif what == "abort":
                played.aborted = True
        return played


# -- judging


def judge(client: bytes, guests: list[bytes], seed: int) -> None:
    """Play the conversation in several ways. Raises AssertionError if anything in it is wrong."""
    whole, cut = play(client, guests, None), play(client, guests, seed)
    mixed = play(client, guests, seed, interleaved=True, pooled=bool(seed & 1))
    for played in (whole, cut, mixed):
        verify(client, played)
    assert _outline(whole.log) == _outline(cut.log), "the cuts of the network changed the meaning"


def judge_text(text: bytes) -> None:
    """Judge a conversation written as in the corpus; the cuts follow from the text."""
    client, _, guests = text.partition(GUESTS)
    judge(client, guests.split(NEXT_GUEST), zlib.crc32(text))


def verify(client: bytes, played: Played) -> None:
    """Compare what went to the guests and to the client with what h11 reads in what came from the other side."""
    left, answers = client, played.to_client
    for exchange in played.exchanges:
        asked = read_request(left)
        if asked is None:
            assert exchange.guest is None, "a request was accepted that h11 refuses"
            return  # without a host: h11 cannot tell where the next one begins
        assert isinstance(asked.head, h11.Request)
        answer = read_answer(answers, asked.head, end=not played.aborted)
        assert answer or played.aborted, "an answer is missing, or h11 refuses it"
        spliced = answer is not None and isinstance(answer.head, h11.InformationalResponse)
        if exchange.guest is not None:
            sent = _same_request(asked, exchange.to_guest, spliced=spliced)
            _same_answer(asked.head, exchange, answer, sent)
        if answer is None or spliced or not answer.whole:
            assert exchange is played.exchanges[-1], "something follows an answer without an end"
            return
        left, answers = asked.rest, answer.rest
        assert exchange is played.exchanges[-1] or answer.keep_alive, "a request was read after `close`"
    if answers:
        refusal = read_answer(answers, h11.Request(method="GET", target="/", headers=[("Host", "a")]), end=True)
        assert refusal and _is_ours(refusal) and not refusal.rest, "something follows the last answer"


def _same_request(asked: Message, to_guest: bytes, *, spliced: bool) -> Message | None:
    """What reached the guest is exactly one request, or the beginning of it, and says what the client said."""
    if not to_guest:
        return None
    sent = read_request(to_guest)
    assert sent, "h11 refuses what the guest gets"
    assert isinstance(sent.head, h11.Request) and isinstance(asked.head, h11.Request)
    try:
        again = parse_request(to_guest[: to_guest.index(b"\r\n\r\n")])
    except Malformed as error:
        raise AssertionError(f"the relay refuses what it sends itself: {error}") from error
    assert sent.head.http_version == b"1.1"
    assert asked.head.method == sent.head.method == again.method
    assert sent.head.target == _origin_form(asked.head)
    assert _values(asked.head, b"host") == _values(sent.head, b"host") == [again.host]
    assert _framing(asked.head) == _framing(sent.head)
    assert _end_to_end(asked.head) == _end_to_end(sent.head)
    assert _values(sent.head, b"te") in ([], [b"trailers"])
    assert _values(sent.head, b"x-request-id") in (_values(asked.head, b"x-request-id"), [OWN_ID])
    if sent.whole:
        assert asked.whole and (asked.body, asked.trailers) == (sent.body, sent.trailers)
        assert asked.rest.startswith(sent.rest) if spliced else not sent.rest, "bytes after the request"
    assert asked.body.startswith(sent.body)
    return sent


def _same_answer(asked: h11.Request, exchange: Exchange, got: Message | None, sent: Message | None) -> None:
    """What reached the client is what the guest said, or the beginning of it, or an answer of our own."""
    assert exchange.guest is not None
    said = read_answer(exchange.guest, asked, end=exchange.guest_ended)
    if exchange.reuse:
        assert said and said.whole and not said.rest, "a connection is used again amid an answer"
        assert sent and sent.whole, "a connection is used again amid a request"
    if got is None or _is_ours(got):
        assert not exchange.reuse
        return
    assert said, "an answer was accepted that h11 refuses"
    assert isinstance(got.head, h11.Response | h11.InformationalResponse)
    assert isinstance(said.head, h11.Response | h11.InformationalResponse)
    assert (got.head.status_code, got.head.reason) == (said.head.status_code, said.head.reason)
    assert got.interim == ([] if asked.http_version == b"1.0" else said.interim)
    assert _end_to_end(got.head) == _end_to_end(said.head)
    assert said.body.startswith(got.body)
    if got.whole:
        assert said.whole and said.body == got.body
        assert got.trailers == (said.trailers if _framing(got.head) == [b"chunked"] else [])
    if got.head.status_code == 101:
        assert said.rest.startswith(got.rest)


def _is_ours(answer: Message) -> bool:
    return (b"content-type", b"application/json") in answer.head.headers and (
        answer.body.startswith(_OURS) or not answer.body
    )


def _values(head: Head, name: bytes) -> list[bytes]:
    return [value for found, value in head.headers if found == name]


def _framing(head: Head) -> list[bytes]:
    return _values(head, b"transfer-encoding") + [b"%d" % int(value) for value in _values(head, b"content-length")]


def _end_to_end(head: Head) -> list[tuple[bytes, bytes]]:
    """The fields that are for the other end, in their order."""
    options = b",".join(_values(head, b"connection")).lower().split(b",")
    hidden = _NOT_END_TO_END | {option.strip(b" \t") for option in options}
    kept = []
    for name, value in head.headers:
        folded = name.replace(b"_", b"-")  # as CGI reads it
        identity = folded in _IDENTITY or folded.startswith(b"x-forwarded-")
        if name not in hidden and folded not in _NOT_END_TO_END and not (identity and isinstance(head, h11.Request)):
            kept.append((name, value))
    return kept


def _origin_form(asked: h11.Request) -> bytes:
    target = bytes(asked.target)
    if target.startswith(b"/") or target == b"*":
        return target
    path = _AUTHORITY.sub(b"", target, count=1)
    if not path and asked.method == b"OPTIONS":
        return b"*"
    return path if path.startswith(b"/") else b"/" + path


def _outline(log: list[Said]) -> list[Said]:
    """The log without what cuts may change: where writes are cut and how those of both ways alternate, which of two
    faults is named, whether what follows the last request or answer is here already, how much of an answer passed
    before it was cut off."""
    out: list[Said] = []
    written = {"to guest": b"", "to client": b""}
    for what, data in log:
        if what in written:
            written[what] += data
            continue
        out += [(way, b"refusal" if _OURS in sent else sent) for way, sent in written.items()]
        out.append((what, data if what == "begin" else b""))
        written = dict.fromkeys(written, b"")
    if ("abort", b"") in out:
        return [(what, data) for what, data in out if what != "to client"]
    return out
