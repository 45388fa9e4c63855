"""Who may connect: networks, as `HATCH_SSH_ALLOWED_CIDR` lists them."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias

Network: TypeAlias = IPv4Network | IPv6Network

#: IPv4 addresses as IPv6 writes them (RFC 4291, 2.5.5.2).
_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_LOOPBACK: Final = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))


def parse(text: str) -> tuple[Network, ...]:
    """`10.0.0.0/8, 2001:db8::/32`: one network or more. A bare address is a network of one; host bits are ignored.

    Raises ValueError with a sentence that names the wrong part.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise ValueError("names no network; write one or more, like 127.0.0.1/32 or 10.0.0.0/8,2001:db8::/32")
    return tuple(_network(part) for part in parts)


def admits(allowed: Sequence[Network], peer: str) -> bool:
    """True if `peer`, an address as `getpeername` tells it, lies in one of the networks."""
    address = ip_address(peer.partition("%")[0])
    if address.version == 6 and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in network for network in allowed)


def hosts(allowed: Sequence[Network]) -> tuple[str, ...]:
    """The addresses to listen on: one for each family that may connect, no wider than loopback if that is enough."""
    loopback = all(any(_within(network, ours) for ours in _LOOPBACK) for network in allowed)
    versions = {network.version for network in allowed}
    names = {4: "127.0.0.1", 6: "::1"} if loopback else {4: "0.0.0.0", 6: "::"}
    return tuple(names[version] for version in sorted(versions))


def _network(part: str) -> Network:
    try:
        network = ip_network(part, strict=False)
    except ValueError:
        wrong = f"{part[:64]!r} is not a network; write it like 127.0.0.1/32, 10.0.0.0/8 or 2001:db8::/32"
        raise ValueError(wrong) from None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) & 0xFFFF_FFFF, network.prefixlen - 96))
    return network


def _within(network: Network, other: Network) -> bool:
    if isinstance(network, IPv4Network):
        return isinstance(other, IPv4Network) and network.subnet_of(other)
    return isinstance(other, IPv6Network) and network.subnet_of(other)
