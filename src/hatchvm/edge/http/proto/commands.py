"""What the relay wants done."""

from __future__ import annotations

from typing import Protocol

from hatchvm.edge.http.proto.request import Request


class Out(Protocol):
    """Whoever owns the sockets of one client's connection, and does as it is told."""

    def begin(self, request: Request) -> None:
        """A request's head is complete: find its VM, hold it awake, and connect to it."""

    def again(self) -> None:
        """The pooled connection was dead: leave it, and connect to the same VM afresh."""

    def send_upstream(self, data: bytes) -> None:
        """Write to the guest."""

    def end_upstream(self) -> None:
        """No more bytes for the guest; its own may still come."""

    def send_client(self, data: bytes) -> None:
        """Write to the client."""

    def end_client(self) -> None:
        """No more bytes for the client; its own may still come."""

    def finish(self, *, reuse: bool) -> None:
        """The exchange is over: let go of the VM. `reuse`: the guest's connection can serve another request."""

    def close_client(self, *, linger: bool) -> None:
        """Close once everything is written.

        `linger`: the client may still be sending, so read (and forget) for a moment, because closing on unread bytes
        resets the connection and can destroy the answer on its way.
        """

    def date(self) -> str:
        """The present, as `Date` has it (RFC 9110, 5.6.7)."""

    def abort_client(self) -> None:
        """Cut the connection so that the client notices that its answer is incomplete."""
