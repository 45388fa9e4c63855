"""Addresses as pure functions of what is known."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Container, Mapping
from typing import Final

from hatchvm.base.errors import Conflict, Exhausted, Invalid

#: What a guest of a private user network gets. Every such VM has a network of its own, so all may have the same.
USER_GUEST_IP: Final = "10.0.2.15"

_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
#: What the addresses of Hatch's own bridges begin with. Locally administered, so no manufacturer has it.
_BRIDGE_MAC: Final = "06:68:74:"


def mac_of(vm_id: str) -> str:
    """A locally administered unicast address, the same for the same VM."""
    digest = hashlib.sha256(vm_id.encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x52, *digest[:5]))


def user_guest_ip(wanted: str | None) -> str:
    """The address a guest on a private user network gets: what was asked for, if a guest can have it.

    Raises Invalid otherwise.
    """
    if wanted is None:
        return USER_GUEST_IP
    try:
        address = ipaddress.IPv4Address(wanted)
    except ValueError as error:
        raise Invalid(f"guest_ip: {wanted[:64]!r} is not an IPv4 address") from error
    if (
        address.is_multicast
        or address.is_loopback
        or address.is_link_local
        or address.is_reserved
        or address.packed[0] == 0  # "this network"
    ):
        raise Invalid(f"guest_ip: {wanted} is not an address a guest can have")
    if int(address) & 0xFF in (0, 255):
        raise Invalid(f"guest_ip: {wanted} is the network's own or its broadcast address (the network is its /24)")
    return wanted


def bridge_mac(name: str) -> str:
    """The hardware address of a bridge: the same for the same name, so that guests' ARP caches outlast sleep."""
    digest = hashlib.sha256(name.encode()).digest()
    return _BRIDGE_MAC + ":".join(f"{byte:02x}" for byte in digest[:3])


def check_mac(wanted: str) -> str:
    """The hardware address that was asked for, in lower case. Raises Invalid if a guest cannot have it."""
    mac = wanted.lower()
    if _MAC.fullmatch(mac) is None:
        raise Invalid(f"guest_mac: {wanted[:64]!r} is not a hardware address like 52:54:00:12:34:56")
    if int(mac[:2], 16) & 1:
        raise Invalid(f"guest_mac: {wanted} is a multicast address: its first byte must be even")
    if mac == "00:00:00:00:00:00" or mac.startswith(_BRIDGE_MAC):
        raise Invalid(f"guest_mac: {wanted} is not an address a guest can have")
    return mac


def bridge_address(wanted: str | None, interface: ipaddress.IPv4Interface, used: Container[str]) -> str:
    """The address a guest on the bridge gets: what was asked for, else the lowest that is free.

    `interface` is the bridge's own address in its network. Raises Invalid if no guest can have the address, Conflict if
    one has it, Exhausted if none is left. Looks at no more than one address for each that is used.
    """
    network, gateway = interface.network, int(interface.ip)
    first, last = int(network.network_address) + 1, int(network.broadcast_address) - 1
    if wanted is not None:
        if not _is_within(wanted, network):
            raise Invalid(f"guest_ip: {wanted[:64]!r} is not an address of the bridge's network {network}")
        if not first <= int(ipaddress.IPv4Address(wanted)) <= last or wanted == str(interface.ip):
            raise Invalid(f"guest_ip: {wanted} is the network's own, its broadcast or its gateway's address")
        if wanted in used:
            raise Conflict(f"guest_ip: {wanted} belongs to another VM")
        return wanted
    for number in range(first, last + 1):
        if number != gateway and (address := _dotted(number)) not in used:
            return address
    raise Exhausted(f"no free address in the bridge's network {network}; delete a VM or widen HATCH_BRIDGE_CIDR")


def check_bridge(interface: ipaddress.IPv4Interface, taken: Mapping[str, str]) -> None:
    """`taken`: VM id -> guest address. Raises Conflict if one of them could not be reached on the bridge."""
    outside = [
        f"{vm_id} ({address})"
        for vm_id, address in taken.items()
        if not _is_within(address, interface.network) or address == str(interface.ip)
    ]
    if outside:
        raise Conflict(
            f"HATCH_BRIDGE_CIDR {interface} leaves no place for {len(outside)} VMs that have addresses already, "
            f"like {outside[0]}; set it back, or delete them first",
            detail=", ".join(outside),
        )


def _is_within(address: str, network: ipaddress.IPv4Network) -> bool:
    try:
        return ipaddress.IPv4Address(address) in network
    except ValueError:
        return False


def _dotted(number: int) -> str:
    """Several times as fast as `ipaddress`, which counts when a network of 65,000 addresses is nearly full."""
    return f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def first_free(ports: range, used: Container[int]) -> int:
    """The lowest port that is not used. Raises Exhausted."""
    for port in ports:
        if port not in used:
            return port
    raise Exhausted(f"no free SSH port in {ports.start}..{ports.stop - 1}; delete a VM or widen HATCH_SSH_PORT_MAX")
