"""Addresses as pure functions of what is known."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Container
from typing import Final

from hatchvm.base.errors import Exhausted, Invalid

#: What a guest of a private user network gets. Every such VM has a network of its own, so all may have the same.
USER_GUEST_IP: Final = "10.0.2.15"


def mac_of(vm_id: str) -> str:
    """A locally administered unicast address, the same for the same VM."""
    digest = hashlib.sha256(vm_id.encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x52, 0x54, 0x00, *digest[:3]))


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


def first_free(ports: range, used: Container[int]) -> int:
    """The lowest port that is not used. Raises Exhausted."""
    for port in ports:
        if port not in used:
            return port
    raise Exhausted(f"no free SSH port in {ports.start}..{ports.stop - 1}; delete a VM or widen HATCH_SSH_PORT_MAX")
