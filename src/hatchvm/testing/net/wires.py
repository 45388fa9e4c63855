"""Guests without a VMM, for tests of the bridge: network namespaces at the far end of a pair of cables.

Everything lives in namespaces of its own, with names that no other test run has, and goes when the block is left.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface
from typing import Final

from hatchvm.domain.addressing import bridge_mac
from hatchvm.net.bridge import links
from hatchvm.net.bridge.bridge import BridgeNetwork
from hatchvm.net.bridge.namespace import Namespace
from hatchvm.net.bridge.settings import Allow, Bridge
from hatchvm.ports.network import Seat

CARD: Final = "eth0"
BROADCAST: Final = "ff:ff:ff:ff:ff:ff"
GATEWAY: Final = "172.16.0.1"
_IPV4: Final = 0x0800
_UDP: Final = 17


def ip(*args: str) -> str:
    done = subprocess.run(["ip", *args], check=True, capture_output=True, text=True)
    return done.stdout


@dataclass(frozen=True, slots=True)
class Far:
    """A namespace at the far end of a cable."""

    space: Namespace

    @property
    def name(self) -> str:
        return str(self.space.name)

    def tcp(self) -> socket.socket:
        with self.space.inside():
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

    def listen(self, address: str, port: int = 0) -> socket.socket:
        with self.space.inside():
            listener = socket.create_server((address, port))
        listener.setblocking(False)
        return listener

    def udp(self, address: str = "0.0.0.0", port: int = 0) -> socket.socket:
        with self.space.inside():
            bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        bound.settimeout(10)
        bound.bind((address, port))
        return bound

    def wire(self) -> socket.socket:
        """Whole frames, sent and received as they are."""
        with self.space.inside():
            raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
            raw.bind((CARD, 0))
        raw.settimeout(10)
        return raw

    def give(self, address: str, prefix: int = 24) -> None:
        """What a guest does with what DHCP told it."""
        ip("-n", self.name, "addr", "add", f"{address}/{prefix}", "dev", CARD)
        ip("-n", self.name, "route", "add", "default", "via", GATEWAY)

    def dhcp(self, *, tries: int = 3, client_id: str = "01020304") -> str | None:
        """The address that the guest is told, its router and its DNS server, or None if nobody answers.

        All guests tell the same `client_id` (hex digits), like copies of one image.
        """
        script = '#!/bin/sh\n[ "$1" = bound ] && echo "bound $ip $router $dns"\nexit 0\n'
        with self.space.inside(), _program(script) as path:
            done = subprocess.run(
                [
                    "busybox",
                    "udhcpc",
                    "-i",
                    CARD,
                    "-n",
                    "-q",
                    "-f",
                    "-t",
                    str(tries),
                    "-T",
                    "1",
                    "-x",
                    f"0x3d:{client_id}",
                    "-s",
                    path,
                ],
                capture_output=True,
                text=True,
                check=False,
            )
        bound = [line for line in done.stdout.splitlines() if line.startswith("bound ")]
        return bound[0].split(" ", 1)[1] if bound else None


@dataclass(frozen=True, slots=True)
class Guest(Far):
    seat: Seat


class Lab:
    """One bridge in a namespace of its own, and whatever a test connects to it."""

    def __init__(self, *, name: str = "fcbr0", allow: tuple[Allow, ...] = (), netns: str | None = None) -> None:
        self.id = netns or f"hatch-{secrets.token_hex(4)}"
        self.bridge = Bridge(name=name, cidr=IPv4Interface(f"{GATEWAY}/24"), netns=self.id, allow=allow)
        self.network = BridgeNetwork(self.bridge)
        self._fars: list[str] = []

    @property
    def host(self) -> Far:
        """The side of the host."""
        return Far(self.network.namespace)

    def seat(self, number: int, mac: str | None = None) -> Seat:
        name = f"vm-{number:012x}"
        mac = mac or f"52:54:00:00:00:{number:02x}"
        return Seat(vm_id=name, guest_ip=f"172.16.0.{number}", guest_mac=mac, tap_name=name)

    def guest(self, seat: Seat) -> Guest:
        """A guest whose card is the far end of a cable that is plugged in as a TAP would be."""
        space = self._far(str(seat.tap_name), seat.guest_mac)
        with self.network.namespace.inside():
            links.plug(self.bridge.name, str(seat.tap_name), seat)
        return Guest(space, seat)

    def outside(self, address: str) -> Far:
        """A host on another network of the bridge's host, which knows no way to the guests."""
        near, far = f"{address}.1/24", f"{address}.2"
        name = f"up{len(self._fars)}"
        space = self._far(name, None)
        ip("-n", self.id, "addr", "add", near, "dev", name)
        ip("-n", self.id, "link", "set", name, "up")
        ip("-n", str(space.name), "addr", "add", f"{far}/24", "dev", CARD)
        return Far(space)

    def unplug(self) -> None:
        for link in self.links():
            if link.startswith(("vm-", "up")):
                ip("-n", self.id, "link", "del", link)
        for name in self._fars:
            ip("netns", "del", name)
        self._fars.clear()

    def links(self) -> set[str]:
        """Names of the devices in the bridge's namespace."""
        return {line.split(": ")[1].partition("@")[0] for line in ip("-n", self.id, "-o", "link").splitlines()}

    def rules(self) -> str:
        return self.nft("list", "ruleset")

    def nft(self, *args: str) -> str:
        with self.network.namespace.inside():
            return subprocess.run(["nft", *args], check=True, capture_output=True, text=True).stdout

    def _far(self, near: str, mac: str | None) -> Namespace:
        space = Namespace(f"{self.id}-{len(self._fars)}")
        space.make()
        self._fars.append(str(space.name))
        peer = ["peer", "name", CARD, "netns", str(space.name)]
        ip("-n", self.id, "link", "add", near, "type", "veth", *peer)
        ip("-n", str(space.name), "link", "set", CARD, *(["address", mac] if mac else []), "up")
        return space


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """The calling thread stays on one processor, so that what it sends arrives in the order in which it was sent."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def datagram(seat: Seat, to: str, port: int, payload: bytes, *, to_mac: str, mac: str = "", ip: str = "") -> bytes:
    """A frame with a UDP datagram; `mac` and `ip` are for guests that lie."""
    body = struct.pack("!HHHH", 9999, port, 8 + len(payload), 0) + payload
    source, target = socket.inet_aton(ip or seat.guest_ip), socket.inet_aton(to)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 0, 0, 64, _UDP, 0, source, target)
    head = head[:10] + struct.pack("!H", _checksum(head)) + head[12:]
    return _ether(to_mac) + _ether(mac or seat.guest_mac) + struct.pack("!H", _IPV4) + head + body


def arp(seat: Seat, *, claims: str, mac: str = "") -> bytes:
    """A broadcast that says: this address is mine."""
    mac = mac or seat.guest_mac
    sender = _ether(mac) + socket.inet_aton(claims)
    body = struct.pack("!HHBBH", 1, _IPV4, 6, 4, 1) + sender + bytes(6) + socket.inet_aton(GATEWAY)
    return _ether(BROADCAST) + _ether(mac) + struct.pack("!H", 0x0806) + body


def gateway_mac(lab: Lab) -> str:
    return bridge_mac(lab.bridge.name)


def _ether(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _checksum(head: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(head) // 2}H", head))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@contextlib.contextmanager
def _program(text: str) -> Iterator[str]:
    """A program that exists while the block runs."""
    fd = os.memfd_create("script", 0)
    try:
        os.write(fd, text.encode())
        os.fchmod(fd, 0o700)
        yield f"/proc/{os.getpid()}/fd/{fd}"
    finally:
        os.close(fd)
