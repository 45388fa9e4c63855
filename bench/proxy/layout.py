"""What every proxy is told to do: which host name leads to which VM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

BASE: Final = "hatch.localhost"


@dataclass(frozen=True, slots=True)
class Layout:
    """Listen on `port`; route `i` of `routes` leads to the VM behind loopback port `vms[i % len(vms)]`."""

    port: int
    vms: Sequence[int]
    routes: int

    def label(self, route: int) -> str:
        return f"r{route}"

    def host(self, route: int) -> str:
        return f"{self.label(route)}.{BASE}"

    def hosts_of(self, vm: int) -> list[str]:
        """The host names that lead to `vms[vm]`."""
        return [self.host(route) for route in range(vm, self.routes, len(self.vms))]
