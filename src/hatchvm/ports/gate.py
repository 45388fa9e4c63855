"""What a door (HTTP proxy, SSH gateway) may ask of the house: find a VM, hold it awake, wake it, reach its ports."""

from __future__ import annotations

import socket
from typing import Protocol

from hatchvm.domain.route import Route


class Hold(Protocol):
    """One reason to keep a VM awake, from the first byte of a request (or session) until its last."""

    def touch(self) -> None:
        """Bytes flowed: the VM is active now. Cheap: called per chunk."""

    def release(self) -> None:
        """The request is over. May be repeated."""


class Gate(Protocol):
    """The synchronous methods only look at memory: they are the fast path of every request."""

    def route(self, subdomain: str) -> Route | None:
        """The route for a subdomain (lower case), or None."""

    def domain(self, name: str) -> Route | None:
        """The route that has this custom domain (lower case), verified; or None."""

    def find(self, name: str) -> str | None:
        """The id of the VM that users call so: by its id, its name, or the subdomain of a route to it."""

    def hold(self, vm_id: str, kind: str = "http", peer: str = "") -> Hold:
        """Keep the VM awake, as of now. A suspend under way sees it and is taken back if it still can be.

        `kind` (`http`, `ssh`) and `peer` (an address) are for who asks why the VM is awake.
        """

    def ready(self, route: Route) -> bool:
        """True: the VM runs, `dial` it. False: `need` it first.

        Raises the error its client must get: Upstream (502) `vm not found`, `vm has no guest IP`; Unavailable (503)
        `vm is snapshotted and auto-wake is disabled`, `vm is in state "…", not proxying`.
        """

    async def need(self, vm_id: str, *, reason: str, timeout_s: float, by: str = "") -> None:
        """Return when the VM runs, waking it if it sleeps. The wake goes on when this is cancelled or times out.

        `reason` is one of `http`, `ssh`, `api`; `by` is who asked (an address). Raises Unavailable `failed to wake vm`
        with `retry_after_s`.
        """

    async def dial(self, vm_id: str, port: int, *, timeout_s: float) -> socket.socket:
        """A connected non-blocking socket to the guest's `port`, waiting for readiness after a boot or a wake.

        Raises Upstream `upstream refused connection`, UpstreamTimeout `upstream timed out`, and Unavailable if the VM
        stopped running meanwhile (`need` it again).
        """
