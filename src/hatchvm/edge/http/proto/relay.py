"""The relay: one client's connection as a conversation between client, house and guest. Pure: no clock, no socket.

Events are calls of the relay's methods, commands its calls of an `Out`; whoever owns the sockets is both. `begin` may
bring the next event before it returns (the VM runs and a connection is pooled, or the answer is no); no other command
does. Requests are served one at a time, in the order they came.

    IDLE ──first byte──▶ HEAD ──Begin──▶ WAITING ──upstream_ready──▶ ANSWER ──head──▶ STREAM ──Finish──▶ IDLE
                          │               │  ▲ waking│                │ ▲                │
                        400,408           │ WAKING◀──┘                │ └──Again (stale)  └──101──▶ SPLICE
                          ▼               ▼ refused                   ▼ 502, 504                    │
                        LINGER ─────────────────────────────────▶ CLOSED ◀──────────────────────────┘

Who hangs up? A client that ends its stream may have gone or may only have nothing more to say; TCP does not tell.
While the VM is being woken it counts as gone. Afterwards the end is passed on, and the guest decides, as if it had
been asked directly.

When is a request repeated? Only when a *pooled* connection ended before the first byte of an answer (the guest closed
it while the request was on its way), the method is idempotent and no byte of a body was passed on: bodies are not
kept, and any other request might have been carried out. Once at most: the second connection is fresh. A *fresh*
connection that ends without one byte means that nobody listens: user-mode networking accepts on the guest's behalf
before it knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from hatchvm.edge.http.proto.body import Body, body_of
from hatchvm.edge.http.proto.commands import Out
from hatchvm.edge.http.proto.fields import CHUNKED, REMEMBERED_BYTES, Malformed, refuse_unfinished, take_head
from hatchvm.edge.http.proto.phase import Phase
from hatchvm.edge.http.proto.refusal import Refusal
from hatchvm.edge.http.proto.request import Request, parse_request
from hatchvm.edge.http.proto.response import SWITCHING, Response, parse_response

#: More input than this that cannot be used yet, and the client is not read any more.
_BACKLOG_BYTES: Final = 64 * 1024


# Reading a member of an enumeration costs as much as a call; these are read on every event.
_IDLE: Final = Phase.IDLE
_HEAD: Final = Phase.HEAD
_WAITING: Final = Phase.WAITING
_WAKING: Final = Phase.WAKING
_ANSWER: Final = Phase.ANSWER
_STREAM: Final = Phase.STREAM
_SPLICE: Final = Phase.SPLICE
_LINGER: Final = Phase.LINGER
_CLOSED: Final = Phase.CLOSED


class Relay:
    """One client connection."""

    def __init__(self, out: Out) -> None:
        self.phase = _IDLE
        self._out = out
        self._seen = b"\r\n"  # what ends every head: who the client is, and the blank line
        self._keep = True  # the client's connection outlives the exchange
        self._input = b""  # from the client, not usable yet
        self._ids: Iterator[bytes] = iter(())
        self.request_id = b""  # of the last request
        self.status = 0  # of the final answer to it; 0 while it has none
        self._serving = False  # heads are being taken from the input
        self._client_ended = False
        self._request: Request | None = None
        self._body: Body | None = None  # of the request; None once all of it has passed
        self._body_started = False
        self._reused = False  # the guest's connection served others before
        self._heard = False  # the guest said something on its connection
        self._output = b""  # from the guest: part of a head
        self._answered = False  # a final answer's head went to the client
        self._answer: Body | None = None
        self._reusable = False
        self._upstream_ended = False

    @property
    def backlog_bytes(self) -> int:
        """What came from the client and cannot be used yet."""
        return len(self._input)

    @property
    def backlogged(self) -> bool:
        """True: read no more from the client for now."""
        return len(self._input) > _BACKLOG_BYTES

    # -- the client's side

    def client_made(self, forwarded: bytes, ids: Iterator[bytes]) -> None:
        """`forwarded`: whole header lines that tell guests who the client is. `ids`: for requests that have none."""
        self._seen = forwarded + b"\r\n"
        self._ids = ids

    def client_data(self, data: bytes) -> None:
        phase = self.phase
        if phase is _IDLE or phase is _HEAD:
            known = len(self._input)
            self._input = self._input + data if known else data
            self._serve(known)
        elif phase is _SPLICE:
            self._out.send_upstream(data)
        elif self._body is not None and (phase is _STREAM or phase is _ANSWER):
            self._pass_body(data)
        elif phase is not _LINGER and phase is not _CLOSED:
            self._input += data

    def client_eof(self) -> None:
        self._client_ended = True
        match self.phase:
            case Phase.HEAD:
                self._serve(len(self._input))
            case Phase.WAKING:
                self._out.finish(reuse=False)
                self._close(linger=False)
            case Phase.WAITING:
                pass
            case Phase.ANSWER | Phase.STREAM:
                self._client_done()
            case Phase.SPLICE if not self._upstream_ended:
                self._out.end_upstream()
            case Phase.SPLICE:
                self._finish_splice()
            case _:
                self._close(linger=False)

    def client_lost(self) -> None:
        """The connection to the client is gone, whatever the reason."""
        open_exchange = self._request is not None
        self.phase, self._request = _CLOSED, None
        if open_exchange:
            self._out.finish(reuse=False)

    # -- the house

    def waking(self) -> None:
        """The VM sleeps; a connection will take a wake."""
        self.phase = _WAKING

    def refused(self, refusal: Refusal) -> None:
        """There will be no connection for this request."""
        self._refuse(refusal)

    def upstream_ready(self, *, reused: bool) -> None:
        """A connection to the guest is there. `reused`: it has carried a request before."""
        request = self._request
        assert request is not None
        self.phase = _ANSWER
        self._reused = reused
        self._output = b""
        self._heard = False
        head = request.head + b"X-Request-Id: " + self.request_id + b"\r\n" + self._seen
        if self._body and self._input:
            data, self._input = self._input, b""
            self._pass_body(data, head=head)
        else:
            self._out.send_upstream(head)
        if self._client_ended and self.phase is _ANSWER:
            self._client_done()

    def deadline(self) -> None:
        """The present phase has lasted too long."""
        match self.phase:
            case Phase.HEAD:
                self._reject(Refusal(status=408, sentence="the request head took too long"))
            case Phase.ANSWER if self._body:
                self._refuse(Refusal(status=408, sentence="the request body took too long"))
            case Phase.ANSWER:
                self._refuse(Refusal(status=504, sentence="upstream timed out"))
            case Phase.IDLE | Phase.LINGER:
                self._close(linger=False)

    def drain(self) -> None:
        """The daemon is going down: finish what is under way, begin nothing new."""
        self._keep = False
        if self.phase is _IDLE:
            self._close(linger=False)

    # -- the guest's side

    def upstream_data(self, data: bytes) -> None:
        phase = self.phase
        if phase is _ANSWER:
            self._read_answer(data)
        elif phase is _STREAM:
            self._pass_answer(data)
        elif phase is _SPLICE:
            self._out.send_client(data)

    def upstream_eof(self) -> None:
        """The guest will send no more."""
        match self.phase:
            case Phase.ANSWER:
                self._unanswered()
            case Phase.STREAM if self._answer and self._answer.ends_with_connection:
                self._finish()
            case Phase.STREAM:
                self._cut()
            case Phase.SPLICE if not self._upstream_ended:
                self._upstream_ended = True
                if self._client_ended:
                    self._finish_splice()
                else:
                    self._out.end_client()

    def upstream_lost(self, *, broken: bool) -> None:
        """The connection to the guest is gone. `broken`: not by an orderly close."""
        match self.phase:
            case Phase.ANSWER:
                self._unanswered()
            case Phase.STREAM | Phase.SPLICE if broken:
                self._cut()
            case Phase.STREAM:
                self.upstream_eof()
            case Phase.SPLICE:
                self._finish_splice()

    # -- the request on its way

    def _serve(self, known: int = 0) -> None:
        """Begin the requests whose heads are here, each when the one before has ended. `known`: see `take_head`."""
        self._serving = True
        try:
            while (self.phase is _IDLE or self.phase is _HEAD) and self._input:
                head: bytes | None
                data = self._input
                end = -1 if known else data.find(b"\r\n\r\n")
                if 0 <= end == len(data) - 4 < REMEMBERED_BYTES:  # the usual case: one head, and short
                    head, rest = data[:end], b""
                else:
                    head, rest = take_head(data, known, what="request head")
                if head is None:
                    refuse_unfinished(self._input, known)
                    if self._client_ended:
                        raise Malformed("the request ended early")
                    self.phase = _HEAD
                    return
                request = parse_request(head)
                known = 0
                self._input = rest
                self.phase = _WAITING
                self._request = request
                self._keep = self._keep and request.keep_alive
                self._body = body_of(request.length) if request.length else None
                self._body_started = self._answered = False
                self.status = 0
                self.request_id = request.id or next(self._ids)
                self._out.begin(request)
        except Malformed as error:
            self._reject(Refusal(status=error.status, sentence=error.sentence))
        finally:
            self._serving = False

    def _pass_body(self, data: bytes, *, head: bytes = b"") -> None:
        assert self._body is not None
        try:
            passed, rest = self._body.feed(data)
        except Malformed as error:
            self._refuse(Refusal(status=error.status, sentence=error.sentence))
            return
        if self._body.done:
            self._body = None
            self._input = rest
        self._body_started = self._body_started or bool(passed)
        out = head + passed if head else passed
        if out:
            self._out.send_upstream(out)

    def _client_done(self) -> None:
        """The client sends no more, and the guest has not finished."""
        if self._body:
            self._refuse(Refusal(status=400, sentence="the request ended early"))
        elif not self._input:
            self._out.end_upstream()

    # -- the answer on its way

    def _read_answer(self, data: bytes) -> None:
        request = self._request
        assert request is not None
        self._heard = True
        known = len(self._output)
        self._output = self._output + data if known else data
        try:
            while True:
                head, rest = take_head(self._output, known, what="head of the answer")
                if head is None:
                    return
                self._output, known = rest, 0
                response = parse_response(head, request)
                if response.status >= 200 or response.status == SWITCHING:
                    break
                if not request.old:
                    self._out.send_client(response.head + b"\r\n")
        except Malformed as error:
            self._refuse(Refusal(status=502, sentence=f"upstream sent a malformed answer: {error.sentence}"))
            return
        self._start_answer(response, request)

    def _start_answer(self, response: Response, request: Request) -> None:
        rest, self._output = self._output, b""
        if response.status == SWITCHING:
            self._start_splice(response, rest)
            return
        self._answered = True
        self.status = response.status
        length = response.length
        ends_with_connection = length is None or (request.old and length == CHUNKED)
        # An answer that overtakes its request: the client may go on sending, so nothing can follow on this connection.
        if ends_with_connection or self._body:
            self._keep = False
        self._reusable = response.keep_alive and length is not None and not self._client_ended
        head = response.head
        if not self._keep:
            head += b"Connection: close\r\n\r\n"
        elif request.old:
            head += b"Connection: keep-alive\r\n\r\n"
        else:
            head += b"\r\n"
        self.phase = _STREAM
        if length == len(rest):  # all of it is here, as short answers are
            self._out.send_client(head + rest)
            self._finish()
        elif length == 0:
            self._out.send_client(head)
            self._finish(surplus=rest)
        else:
            self._answer = body_of(length, unwrap=request.old)
            self._pass_answer(rest, head=head)

    def _pass_answer(self, data: bytes, *, head: bytes = b"") -> None:
        assert self._answer is not None
        try:
            passed, rest = self._answer.feed(data)
        except Malformed:
            if head:
                self._out.send_client(head)
            self._cut()
            return
        out = head + passed if head else passed
        if out:
            self._out.send_client(out)
        if self._answer.done:
            self._finish(surplus=rest)

    def _unanswered(self) -> None:
        """The guest's connection ended before its answer began."""
        request = self._expect_request()
        if not self._heard and self._reused and request.idempotent and not self._body_started:
            self.phase = _WAITING
            self._out.again()
        elif not self._heard and not self._reused:
            self._refuse(Refusal(status=502, sentence="upstream refused connection"))
        else:
            self._refuse(Refusal(status=502, sentence="upstream closed the connection without an answer"))

    # -- another protocol

    def _start_splice(self, response: Response, rest: bytes) -> None:
        if self._body:
            self._refuse(Refusal(status=502, sentence="upstream switched protocols amid the request"))
            return
        self.phase = _SPLICE
        self._answered = True
        self.status = SWITCHING
        self._upstream_ended = False
        self._out.send_client(response.head + b"\r\n" + rest)
        data, self._input = self._input, b""
        if data:
            self._out.send_upstream(data)
        if self._client_ended:
            self._out.end_upstream()

    def _finish_splice(self) -> None:
        self._request = None
        self._out.finish(reuse=False)
        self._close(linger=False)

    # -- endings

    def _finish(self, *, surplus: bytes = b"") -> None:
        """The answer is complete. `surplus`: what the guest said beyond it; such a guest is not asked again."""
        self._request = None
        self._out.finish(reuse=self._reusable and not surplus and not self._body)
        if self._keep and not self._client_ended and not self._input:
            self.phase = _IDLE
        else:
            self._next()

    def _refuse(self, refusal: Refusal) -> None:
        """End the exchange with an answer of our own, if the guest's has not begun."""
        if self._answered:
            self._cut()
            return
        request = self._expect_request()
        self._keep = self._keep and not self._body
        answer = refusal.answer(self._out.date(), close=not self._keep, bodiless=request.method == b"HEAD")
        self.status = refusal.status
        self._request = None
        self._out.finish(reuse=False)
        self._out.send_client(answer)
        self._next()

    def _reject(self, refusal: Refusal) -> None:
        """Answer what never became a request."""
        self._out.send_client(refusal.answer(self._out.date(), close=True))
        self._close(linger=True)

    def _next(self) -> None:
        if not self._keep or (self._client_ended and not self._input):
            self._close(linger=bool(self._body or self._input))
            return
        self.phase = _IDLE
        if self._input and not self._serving:
            self._serve()

    def _close(self, *, linger: bool) -> None:
        linger = linger and not self._client_ended
        self.phase = _LINGER if linger else _CLOSED
        self._input = b""
        self._request = None
        self._out.close_client(linger=linger)

    def _cut(self) -> None:
        self.phase = _CLOSED
        self._request = None
        self._out.finish(reuse=False)
        self._out.abort_client()

    def _expect_request(self) -> Request:
        assert self._request is not None
        return self._request
