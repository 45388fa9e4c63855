"""The relay: one client's connection as a conversation between client, house and guest. Pure: no clock, no socket.

Events are method calls, commands their return values; whoever owns the sockets calls and obeys in order. Requests are
served one at a time, in the order they came.

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

from enum import Enum, auto
from typing import Final

from hatchvm.edge.http.proto.body import Body, body_of
from hatchvm.edge.http.proto.commands import (
    AbortClient,
    Again,
    Begin,
    CloseClient,
    Command,
    EndClient,
    EndUpstream,
    Finish,
    SendClient,
    SendUpstream,
)
from hatchvm.edge.http.proto.fields import Malformed, refuse_unfinished, take_head
from hatchvm.edge.http.proto.refusal import Refusal
from hatchvm.edge.http.proto.request import Request, parse_request
from hatchvm.edge.http.proto.response import Response, parse_response

#: More input than this that cannot be used yet, and the client is not read any more.
_BACKLOG_BYTES: Final = 64 * 1024


class Phase(Enum):
    """Where the conversation is."""

    IDLE = auto()  # between requests
    HEAD = auto()  # part of a request's head is here
    WAITING = auto()  # for a connection to the guest
    WAKING = auto()  # likewise, and the VM sleeps
    ANSWER = auto()  # the request is on its way, the answer's head is not complete
    STREAM = auto()  # the answer's body flows
    SPLICE = auto()  # another protocol's bytes flow both ways
    LINGER = auto()  # answered; what still comes is forgotten
    CLOSED = auto()


class Relay:
    """One client connection. `forwarded`: whole header lines that tell guests who the client is."""

    def __init__(self, *, forwarded: bytes) -> None:
        self.phase = Phase.IDLE
        self._forwarded = forwarded
        self._keep = True  # the client's connection outlives the exchange
        self._input = b""  # from the client, not usable yet
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

    def client_data(self, data: bytes) -> list[Command]:
        match self.phase:
            case Phase.IDLE | Phase.HEAD:
                return self._read_head(data)
            case Phase.SPLICE:
                return [SendUpstream(data)]
            case Phase.LINGER | Phase.CLOSED:
                return []
            case Phase.ANSWER | Phase.STREAM if self._body:
                return self._pass_body(data)
        self._input += data
        return []

    def client_eof(self) -> list[Command]:
        self._client_ended = True
        match self.phase:
            case Phase.HEAD:
                return self._read_head(b"")
            case Phase.WAKING:
                return [Finish(reuse=False), *self._close(linger=False)]
            case Phase.WAITING:
                return []
            case Phase.ANSWER | Phase.STREAM:
                return self._client_done()
            case Phase.SPLICE:
                return [EndUpstream()] if not self._upstream_ended else self._finish_splice()
        return self._close(linger=False)

    def client_lost(self) -> list[Command]:
        """The connection to the client is gone, whatever the reason."""
        open_exchange = self._request is not None
        self.phase, self._request = Phase.CLOSED, None
        return [Finish(reuse=False)] if open_exchange else []

    # -- the house

    def waking(self) -> list[Command]:
        """The VM sleeps; a connection will take a wake."""
        self.phase = Phase.WAKING
        return []

    def refused(self, refusal: Refusal) -> list[Command]:
        """There will be no connection for this request."""
        return self._refuse(refusal)

    def upstream_ready(self, *, reused: bool) -> list[Command]:
        """A connection to the guest is there. `reused`: it has carried a request before."""
        request = self._expect_request()
        self.phase = Phase.ANSWER
        self._reused = reused
        self._output = b""
        self._heard = False
        if self._body and self._input:
            data, self._input = self._input, b""
            commands = self._pass_body(data, head=request.head)
        else:
            commands = [SendUpstream(request.head)]
        if self._client_ended and self.phase is Phase.ANSWER:
            commands += self._client_done()
        return commands

    def deadline(self) -> list[Command]:
        """The present phase has lasted too long."""
        match self.phase:
            case Phase.HEAD:
                return self._reject(Refusal(status=408, sentence="the request head took too long"))
            case Phase.ANSWER if self._body:
                return self._refuse(Refusal(status=408, sentence="the request body took too long"))
            case Phase.ANSWER:
                return self._refuse(Refusal(status=504, sentence="upstream timed out"))
            case Phase.IDLE | Phase.LINGER:
                return self._close(linger=False)
        return []

    def drain(self) -> list[Command]:
        """The daemon is going down: finish what is under way, begin nothing new."""
        self._keep = False
        return self._close(linger=False) if self.phase is Phase.IDLE else []

    # -- the guest's side

    def upstream_data(self, data: bytes) -> list[Command]:
        match self.phase:
            case Phase.ANSWER:
                return self._read_answer(data)
            case Phase.STREAM:
                return self._pass_answer(data)
            case Phase.SPLICE:
                return [SendClient(data)]
        return []

    def upstream_eof(self) -> list[Command]:
        """The guest will send no more."""
        match self.phase:
            case Phase.ANSWER:
                return self._unanswered()
            case Phase.STREAM if self._answer and self._answer.ends_with_connection:
                return self._finish()
            case Phase.STREAM:
                return self._cut()
            case Phase.SPLICE if not self._upstream_ended:
                self._upstream_ended = True
                return [EndClient()] if not self._client_ended else self._finish_splice()
        return []

    def upstream_lost(self, *, broken: bool) -> list[Command]:
        """The connection to the guest is gone. `broken`: not by an orderly close."""
        match self.phase:
            case Phase.ANSWER:
                return self._unanswered()
            case Phase.STREAM if broken:
                return self._cut()
            case Phase.STREAM:
                return self.upstream_eof()
            case Phase.SPLICE:
                return self._cut() if broken else self._finish_splice()
        return []

    # -- the request on its way

    def _read_head(self, data: bytes) -> list[Command]:
        known = len(self._input)
        self._input = self._input + data if known else data
        try:
            head, rest = take_head(self._input, known, what="request head")
            if head is None:
                refuse_unfinished(self._input, known)
                if self._client_ended:
                    raise Malformed("the request ended early")
                self.phase = Phase.HEAD
                return []
            request = parse_request(head, self._forwarded)
        except Malformed as error:
            return self._reject(Refusal(status=error.status, sentence=error.sentence))
        self._input = rest
        return self._begin(request)

    def _begin(self, request: Request) -> list[Command]:
        self.phase = Phase.WAITING
        self._request = request
        self._keep = self._keep and request.keep_alive
        self._body = body_of(request.length)
        self._body_started = self._answered = False
        return [Begin(request)]

    def _pass_body(self, data: bytes, *, head: bytes = b"") -> list[Command]:
        assert self._body is not None
        try:
            passed, rest = self._body.feed(data)
        except Malformed as error:
            return self._refuse(Refusal(status=error.status, sentence=error.sentence))
        if self._body.done:
            self._body = None
            self._input = rest
        self._body_started = self._body_started or bool(passed)
        out = head + passed if head else passed
        return [SendUpstream(out)] if out else []

    def _client_done(self) -> list[Command]:
        """The client sends no more, and the guest has not finished."""
        if self._body:
            return self._refuse(Refusal(status=400, sentence="the request ended early"))
        return [EndUpstream()] if not self._input else []

    # -- the answer on its way

    def _read_answer(self, data: bytes) -> list[Command]:
        request = self._expect_request()
        commands: list[Command] = []
        self._heard = True
        known = len(self._output)
        self._output += data
        try:
            while True:
                head, rest = take_head(self._output, known, what="head of the answer")
                if head is None:
                    break
                self._output, known = rest, 0
                response = parse_response(head, request)
                if not response.interim:
                    return commands + self._start_answer(response, request)
                if not request.old:
                    commands.append(SendClient(response.head + b"\r\n"))
        except Malformed as error:
            sentence = f"upstream sent a malformed answer: {error.sentence}"
            commands += self._refuse(Refusal(status=502, sentence=sentence))
        return commands

    def _start_answer(self, response: Response, request: Request) -> list[Command]:
        rest, self._output = self._output, b""
        if response.switching:
            return self._start_splice(response, rest)
        self._answered = True
        self._answer = body_of(response.length, unwrap=request.old)
        ends_with_connection = response.length is None or (request.old and response.chunked)
        # An answer that overtakes its request: the client may go on sending, so nothing can follow on this connection.
        self._keep = self._keep and not ends_with_connection and not self._body
        self._reusable = response.keep_alive and response.length is not None and not self._client_ended
        head = response.head + self._connection_line(request) + b"\r\n"
        self.phase = Phase.STREAM
        if self._answer is None:
            return [SendClient(head), *self._finish(surplus=rest)]
        return self._pass_answer(rest, head=head)

    def _connection_line(self, request: Request) -> bytes:
        if not self._keep:
            return b"Connection: close\r\n"
        return b"Connection: keep-alive\r\n" if request.old else b""

    def _pass_answer(self, data: bytes, *, head: bytes = b"") -> list[Command]:
        assert self._answer is not None
        try:
            passed, rest = self._answer.feed(data)
        except Malformed:
            return ([SendClient(head)] if head else []) + self._cut()
        out = head + passed if head else passed
        commands: list[Command] = [SendClient(out)] if out else []
        return commands + self._finish(surplus=rest) if self._answer.done else commands

    def _unanswered(self) -> list[Command]:
        """The guest's connection ended before its answer began."""
        request = self._expect_request()
        if not self._heard and self._reused and request.idempotent and not self._body_started:
            self.phase = Phase.WAITING
            return [Again()]
        if not self._heard and not self._reused:
            return self._refuse(Refusal(status=502, sentence="upstream refused connection"))
        return self._refuse(Refusal(status=502, sentence="upstream closed the connection without an answer"))

    # -- another protocol

    def _start_splice(self, response: Response, rest: bytes) -> list[Command]:
        if self._body:
            return self._refuse(Refusal(status=502, sentence="upstream switched protocols amid the request"))
        self.phase = Phase.SPLICE
        self._answered = True
        self._upstream_ended = False
        commands: list[Command] = [SendClient(response.head + b"\r\n" + rest)]
        if self._input:
            commands.append(SendUpstream(self._input))
            self._input = b""
        if self._client_ended:
            commands.append(EndUpstream())
        return commands

    def _finish_splice(self) -> list[Command]:
        self._request = None
        return [Finish(reuse=False), *self._close(linger=False)]

    # -- endings

    def _finish(self, *, surplus: bytes = b"") -> list[Command]:
        """The answer is complete. `surplus`: what the guest said beyond it; such a guest is not asked again."""
        reuse = self._reusable and not surplus and not self._body
        self._request = None
        return [Finish(reuse=reuse), *self._next()]

    def _refuse(self, refusal: Refusal) -> list[Command]:
        """End the exchange with an answer of our own, if the guest's has not begun."""
        if self._answered:
            return self._cut()
        request = self._expect_request()
        self._keep = self._keep and not self._body
        answer = refusal.answer(close=not self._keep, bodiless=request.method == b"HEAD")
        self._request = None
        return [Finish(reuse=False), SendClient(answer), *self._next()]

    def _reject(self, refusal: Refusal) -> list[Command]:
        """Answer what never became a request."""
        return [SendClient(refusal.answer(close=True)), *self._close(linger=True)]

    def _next(self) -> list[Command]:
        if not self._keep or (self._client_ended and not self._input):
            return self._close(linger=bool(self._body or self._input))
        self.phase = Phase.IDLE
        if not self._input:
            return []
        data, self._input = self._input, b""
        return self._read_head(data)

    def _close(self, *, linger: bool) -> list[Command]:
        linger = linger and not self._client_ended
        self.phase = Phase.LINGER if linger else Phase.CLOSED
        self._input = b""
        self._request = None
        return [CloseClient(linger=linger)]

    def _cut(self) -> list[Command]:
        self.phase = Phase.CLOSED
        self._request = None
        return [Finish(reuse=False), AbortClient()]

    def _expect_request(self) -> Request:
        assert self._request is not None
        return self._request
