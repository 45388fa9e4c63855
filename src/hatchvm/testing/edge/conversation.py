"""A relay between a client and guests that a test plays: bytes go in, and a log says what came out.

The only place where the fuzzer and the playbooks of the RFCs know how the relay is called.
"""

from __future__ import annotations

from itertools import repeat
from typing import Final, TypeAlias

from hatchvm.edge.http.proto.phase import Phase
from hatchvm.edge.http.proto.refusal import Refusal
from hatchvm.edge.http.proto.relay import Relay
from hatchvm.edge.http.proto.request import Request

Said: TypeAlias = tuple[str, bytes]
"""What the relay did: `to guest` and `to client` with bytes; `begin` with the host; `again`, `end guest`, `end client`,
`abort`; `finish` with `reuse` or nothing; `close` with `linger` or nothing."""

REUSE: Final[Said] = "finish", b"reuse"
DROP: Final[Said] = "finish", b""
CLOSE: Final[Said] = "close", b""
LINGER: Final[Said] = "close", b"linger"
AGAIN: Final[Said] = "again", b""
END_GUEST: Final[Said] = "end guest", b""
END_CLIENT: Final[Said] = "end client", b""
ABORT: Final[Said] = "abort", b""

#: What a request is called that brought no id.
OWN_ID: Final = b"r-1"
_NO_SUBDOMAIN: Final = Refusal(status=502, sentence="no subdomain in host header")
_WRITES: Final = frozenset({"to guest", "to client"})


def to_client(data: bytes) -> Said:
    return "to client", data


def to_guest(data: bytes) -> Said:
    return "to guest", data


class Talk:
    """One client's connection. Requests without a host are refused, as the house does.

    `pooled`: connections to guests are there at once, without `connects`.
    """

    def __init__(self, *, forwarded: bytes = b"", pooled: bool = False) -> None:
        self.log: list[Said] = []
        self.begun = 0  # requests that lead to a guest
        self._relay = Relay(self)
        self._relay.client_made(forwarded, repeat(OWN_ID))
        self._pooled = pooled
        self._new = 0

    @property
    def phase(self) -> Phase:
        return self._relay.phase

    @property
    def backlogged(self) -> bool:
        """The client is to be read no further for now."""
        return self._relay.backlogged

    @property
    def waits_for_guest(self) -> bool:
        """A request has begun, and has no connection yet."""
        return self._relay.phase in (Phase.WAITING, Phase.WAKING)

    @property
    def open(self) -> bool:
        """An exchange with a guest is under way."""
        return self._relay.phase in (Phase.ANSWER, Phase.STREAM, Phase.SPLICE)

    @property
    def over(self) -> bool:
        """Nothing follows on this connection."""
        return self._relay.phase in (Phase.LINGER, Phase.CLOSED)

    # -- the client

    def client(self, data: bytes) -> list[Said]:
        self._relay.client_data(data)
        return self._news()

    def client_ends(self) -> list[Said]:
        """It says no more; it may still listen."""
        self._relay.client_eof()
        return self._news()

    def client_vanishes(self) -> list[Said]:
        self._relay.client_lost()
        return self._news()

    # -- the house

    def wakes(self) -> list[Said]:
        """The VM sleeps; the request waits."""
        self._relay.waking()
        return self._news()

    def refuses(self, refusal: Refusal) -> list[Said]:
        self._relay.refused(refusal)
        return self._news()

    def connects(self, *, reused: bool = False) -> list[Said]:
        """A connection to the guest is there."""
        self._relay.upstream_ready(reused=reused)
        return self._news()

    def deadline(self) -> list[Said]:
        self._relay.deadline()
        return self._news()

    def drain(self) -> list[Said]:
        self._relay.drain()
        return self._news()

    # -- the guest

    def guest(self, data: bytes) -> list[Said]:
        self._relay.upstream_data(data)
        return self._news()

    def guest_ends(self) -> list[Said]:
        self._relay.upstream_eof()
        return self._news()

    def guest_breaks(self, *, reset: bool = True) -> list[Said]:
        """Its connection is gone: reset, or closed in good order."""
        self._relay.upstream_lost(broken=reset)
        return self._news()

    # -- edge.http.proto.commands.Out

    def begin(self, request: Request) -> None:
        self._note("begin", request.host)
        if not request.host:
            self._relay.refused(_NO_SUBDOMAIN)
            return
        self.begun += 1
        if self._pooled:
            self._relay.upstream_ready(reused=False)

    def again(self) -> None:
        self._note("again")

    def send_upstream(self, data: bytes) -> None:
        self._note("to guest", data)

    def end_upstream(self) -> None:
        self._note("end guest")

    def send_client(self, data: bytes) -> None:
        self._note("to client", data)

    def end_client(self) -> None:
        self._note("end client")

    def finish(self, *, reuse: bool) -> None:
        self._note("finish", b"reuse" if reuse else b"")

    def close_client(self, *, linger: bool) -> None:
        self._note("close", b"linger" if linger else b"")

    def date(self) -> str:
        return "Thu, 01 Jan 2026 00:00:00 GMT"

    def abort_client(self) -> None:
        self._note("abort")

    def _note(self, what: str, data: bytes = b"") -> None:
        if len(self.log) > self._new and what in _WRITES and self.log[-1][0] == what:
            data = self.log.pop()[1] + data
        self.log.append((what, data))

    def _news(self) -> list[Said]:
        """What is new in the log. Bytes sent in a row are one entry."""
        news, self._new = self.log[self._new :], len(self.log)
        return news
