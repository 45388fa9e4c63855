"""A relay whose commands are written down, so that a test reads as a conversation: events in, commands out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import repeat
from typing import TypeAlias

from hatchvm.edge.http.proto.phase import Phase
from hatchvm.edge.http.proto.refusal import Refusal
from hatchvm.edge.http.proto.relay import Relay
from hatchvm.edge.http.proto.request import Request


@dataclass(frozen=True, slots=True)
class Begin:
    head: bytes
    request: Request = field(compare=False)


@dataclass(frozen=True, slots=True)
class Again:
    pass


@dataclass(frozen=True, slots=True)
class SendUpstream:
    data: bytes


@dataclass(frozen=True, slots=True)
class EndUpstream:
    pass


@dataclass(frozen=True, slots=True)
class SendClient:
    data: bytes


@dataclass(frozen=True, slots=True)
class EndClient:
    pass


@dataclass(frozen=True, slots=True)
class Finish:
    reuse: bool


@dataclass(frozen=True, slots=True)
class CloseClient:
    linger: bool


@dataclass(frozen=True, slots=True)
class AbortClient:
    pass


#: See the methods of `edge.http.proto.commands.Out`.
Command: TypeAlias = (
    Begin | Again | SendUpstream | EndUpstream | SendClient | EndClient | Finish | CloseClient | AbortClient
)


class Conversation:
    """Every event returns the commands it led to."""

    def __init__(self, *, forwarded: bytes) -> None:
        self._relay = Relay(self)
        self._relay.client_made(forwarded, repeat(b"r-1"))
        self._commands: list[Command] = []

    # -- events

    @property
    def phase(self) -> Phase:
        return self._relay.phase

    @property
    def backlogged(self) -> bool:
        return self._relay.backlogged

    def client_data(self, data: bytes) -> list[Command]:
        return self._told(lambda: self._relay.client_data(data))

    def client_eof(self) -> list[Command]:
        return self._told(self._relay.client_eof)

    def client_lost(self) -> list[Command]:
        return self._told(self._relay.client_lost)

    def waking(self) -> list[Command]:
        return self._told(self._relay.waking)

    def refused(self, refusal: Refusal) -> list[Command]:
        return self._told(lambda: self._relay.refused(refusal))

    def upstream_ready(self, *, reused: bool) -> list[Command]:
        return self._told(lambda: self._relay.upstream_ready(reused=reused))

    def upstream_data(self, data: bytes) -> list[Command]:
        return self._told(lambda: self._relay.upstream_data(data))

    def upstream_eof(self) -> list[Command]:
        return self._told(self._relay.upstream_eof)

    def upstream_lost(self, *, broken: bool) -> list[Command]:
        return self._told(lambda: self._relay.upstream_lost(broken=broken))

    def deadline(self) -> list[Command]:
        return self._told(self._relay.deadline)

    def drain(self) -> list[Command]:
        return self._told(self._relay.drain)

    def _told(self, event: Callable[[], None]) -> list[Command]:
        event()
        commands, self._commands = self._commands, []
        return commands

    # -- commands: edge.http.proto.commands.Out

    def begin(self, request: Request) -> None:
        self._commands.append(Begin(request.head, request))

    def again(self) -> None:
        self._commands.append(Again())

    def send_upstream(self, data: bytes) -> None:
        self._commands.append(SendUpstream(data))

    def end_upstream(self) -> None:
        self._commands.append(EndUpstream())

    def send_client(self, data: bytes) -> None:
        self._commands.append(SendClient(data))

    def end_client(self) -> None:
        self._commands.append(EndClient())

    def finish(self, *, reuse: bool) -> None:
        self._commands.append(Finish(reuse))

    def close_client(self, *, linger: bool) -> None:
        self._commands.append(CloseClient(linger))

    def date(self) -> str:
        return "Thu, 01 Jan 2026 00:00:00 GMT"

    def abort_client(self) -> None:
        self._commands.append(AbortClient())
