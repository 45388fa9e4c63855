"""What is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from hatchvm.base.units import MIB

KIB: Final = 1024

_PLAIN: Final = MappingProxyType({"nginx": 1.4, "traefik": 1 / 3.5, "caddy": 1 / 5})
_LARGE: Final = MappingProxyType({"nginx": 1.0})
_HUGE: Final[Any] = {"size": 10 * MIB, "connections": 4, "stretch": 2, "goals": _LARGE}
#: VMs that many routes lead to.
_MANY_VMS: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`load`: a kind of load.lua, or `echo`. `size`: bytes of the body, or of a WebSocket message's payload.

    `stretch`: a turn is that many times longer, so that the requests it cuts off at its end are few among the others.
    `goals`: Hatch's CPU time per request at most, as a multiple of that peer's.
    """

    title: str
    load: str
    path: str = "/1k"
    connections: int = 64
    size: int = KIB
    routes: int = 1
    stretch: int = 1
    goals: Mapping[str, float] = field(default_factory=dict)

    @property
    def vms(self) -> int:
        return min(self.routes, _MANY_VMS)

    @property
    def own_guest(self) -> bool:
        """Served by `guest.py`: nginx would answer before it has read a body."""
        return self.load in ("upload", "echo")


CASES: Final[Mapping[str, Case]] = {
    "plain": Case(title="1 KiB, 64 connections", load="same", goals=_PLAIN),
    "plain512": Case(title="1 KiB, 512 connections", load="same", connections=512, goals=_PLAIN),
    "paths": Case(title="1 KiB, a browser's heads, only paths differ", load="paths"),
    "varied": Case(title="1 KiB, no two heads the same", load="varied", path="/varied/0", goals=_PLAIN),
    "browser": Case(title="1 KiB, a browser's heads, cookies differ", load="browser", path="/varied/0"),
    "64k": Case(title="64 KiB, 64 connections", load="same", path="/64k", size=64 * KIB, goals=_LARGE),
    "10m": Case(title="10 MiB, 4 connections", load="same", path="/10m", **_HUGE),
    "upload": Case(title="POST 4 KiB, 64 connections", load="upload", path="/", size=4 * KIB),
    "upload10m": Case(title="POST 10 MiB, 4 connections", load="upload", path="/", **_HUGE),
    "echo": Case(title="WebSocket echo of 64 bytes, 64 connections", load="echo", path="/", size=64),
    "routes1k": Case(title="1 KiB, 1,000 routes", load="hosts", routes=1000),
    "routes100k": Case(title="1 KiB, 100,000 routes", load="hosts", routes=100_000),
}
