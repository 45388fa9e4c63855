"""What the relay wants done. Whoever runs it obeys in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from hatchvm.edge.http.proto.request import Request


@dataclass(frozen=True, slots=True)
class Begin:
    """A request's head is complete: find its VM, hold it awake, and connect to it."""

    request: Request


@dataclass(frozen=True, slots=True)
class Again:
    """The pooled connection was dead: leave it, and connect to the same VM afresh."""


@dataclass(frozen=True, slots=True)
class SendUpstream:
    """Write to the guest."""

    data: bytes


@dataclass(frozen=True, slots=True)
class EndUpstream:
    """No more bytes for the guest; its own may still come."""


@dataclass(frozen=True, slots=True)
class SendClient:
    """Write to the client."""

    data: bytes


@dataclass(frozen=True, slots=True)
class EndClient:
    """No more bytes for the client; its own may still come."""


@dataclass(frozen=True, slots=True)
class Finish:
    """The exchange is over: let go of the VM. `reuse`: the guest's connection can serve another request."""

    reuse: bool


@dataclass(frozen=True, slots=True)
class CloseClient:
    """Close once everything is written. `linger`: the client may still be sending, so read (and forget) for a moment,
    because closing on unread bytes resets the connection and can destroy the answer on its way."""

    linger: bool


@dataclass(frozen=True, slots=True)
class AbortClient:
    """Cut the connection so that the client notices that its answer is incomplete."""


Command: TypeAlias = (
    Begin | Again | SendUpstream | EndUpstream | SendClient | EndClient | Finish | CloseClient | AbortClient
)
