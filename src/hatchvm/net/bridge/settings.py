"""What an operator chooses about the bridge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Final

from hatchvm.base.errors import Invalid

#: Gone after a reboot, as are bridge, namespace and filter. Not in the data directory: that is closed to dnsmasq.
_RUN: Final = Path("/run/hatchvm")


@dataclass(frozen=True, slots=True)
class Allow:
    """Guests may open connections to `network`: to that TCP and UDP port, or with any protocol if `port` is None."""

    network: IPv4Network
    port: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bridge:
    """`name` names everything else: the nftables tables, the folder of dnsmasq, the bridge's hardware address.

    `cidr` is the bridge's address in the guests' network, /8 to /30. `netns`: the network namespace to keep it all in.
    """

    name: str
    cidr: IPv4Interface
    netns: str | None = None
    allow: Sequence[Allow] = ()
    run: Path = _RUN

    @property
    def folder(self) -> Path:
        """Who has a seat on the bridge, for dnsmasq and for the next daemon."""
        return self.run / f"{self.netns or ''}@{self.name}"

    @property
    def table(self) -> str:
        """Of nftables; a dash would have to be quoted on its command line."""
        return f"hatch_{self.name.replace('-', '_')}"

    @property
    def where(self) -> str:
        """For sentences."""
        return f"bridge {self.name}" + (f" in the network namespace {self.netns}" if self.netns else "")


def parse_allow(text: str) -> tuple[Allow, ...]:
    """Rules like `192.0.2.0/24, 172.16.0.1:8080`. Raises Invalid."""
    return tuple(_rule(item.strip()) for item in text.split(",") if item.strip())


def _rule(text: str) -> Allow:
    address, colon, port = text.partition(":")
    try:
        network = IPv4Network(address)
        number = int(port) if colon else None
    except ValueError:
        raise Invalid(f"{text[:64]!r} is not a rule; write it like 192.0.2.0/24 or 172.16.0.1:8080") from None
    if number is not None and not 1 <= number <= 65535:
        raise Invalid(f"{text[:64]!r} names no port; those are 1 to 65535")
    return Allow(network, number)
