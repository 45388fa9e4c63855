"""What a copy of the gate's memory is made of, in another process: everything once, then every change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from hatchvm.domain.lifecycle import State
from hatchvm.domain.route import Route


@dataclass(frozen=True, slots=True)
class Sight:
    """What the doors need to know of a VM. `addressed`: it has a guest IP. `state` is None: the VM is gone."""

    vm_id: str
    name: str | None
    state: State | None
    addressed: bool


class Listener(Protocol):
    """Told of changes as they are made. It must be quick and must not fail."""

    def saw_vm(self, sight: Sight) -> None:
        """A VM is so now."""

    def saw_route(self, route: Route, *, there: bool) -> None:
        """A route is there, new or changed; or (False) no longer. Its VM was seen before."""


class Feed(Protocol):
    """The house's VMs and routes.

    The two lists are as long as the house is large, so they may be read bit by bit: an entry then is as it was when it
    was asked for or later. Whoever joined before and applies what he was told after them has the truth.
    """

    def all_vms(self) -> Iterable[Sight]: ...

    def all_routes(self) -> Iterable[Route]: ...

    def join(self, listener: Listener) -> None:
        """Tell it of every change from now on."""

    def leave(self, listener: Listener) -> None:
        """Tell it no more. May be repeated."""
