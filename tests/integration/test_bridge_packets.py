"""What guests on the bridge can reach, and what not, with real packets between network namespaces."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pytest

from hatchvm.net.bridge.settings import parse_allow
from hatchvm.testing.net.wires import BROADCAST, GATEWAY, Far, Guest, Lab, arp, datagram, gateway_mac, ip, pinned

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which needs root"),
    pytest.mark.xdist_group("bridge"),
]

INTERNET: Final = "198.18.0.2"
METADATA: Final = "169.254.169.254"
ALLOWED: Final = "198.18.0.1:8080, 169.254.7.7"
LIE: Final = b"lie"
TRUTH: Final = b"truth"


@dataclass(frozen=True, slots=True)
class World:
    lab: Lab
    one: Guest
    two: Guest
    internet: Far  # and whatever else is behind the host


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    lab = Lab(allow=parse_allow(ALLOWED))
    asyncio.run(lab.network.open())
    try:
        internet = lab.outside("198.18.0")
        for address in (METADATA, "169.254.7.7"):
            ip("-n", internet.name, "addr", "add", f"{address}/32", "dev", "eth0")
            ip("-n", lab.id, "route", "add", f"{address}/32", "via", INTERNET)
        yield World(lab, _guest(lab, 2), _guest(lab, 3), internet)
    finally:
        lab.unplug()
        asyncio.run(lab.network.remove())


def _guest(lab: Lab, number: int) -> Guest:
    seat = lab.seat(number)
    asyncio.run(lab.network.admit(seat))
    guest = lab.guest(seat)
    guest.give(seat.guest_ip)
    return guest


async def reach(source: Far, address: str, port: int) -> str:
    """`open`, `closed` (nobody listens), `refused` (by a rule) or `silent`."""
    with contextlib.closing(source.tcp()) as sock:
        try:
            async with asyncio.timeout(0.4):
                await asyncio.get_running_loop().sock_connect(sock, (address, port))
        except ConnectionRefusedError:
            return "closed"
        except TimeoutError:
            return "silent"
        except OSError as error:
            assert error.errno == errno.EHOSTUNREACH
            return "refused"
        return "open"


async def test_a_guest_reaches_the_internet_by_the_hosts_address(world: World) -> None:
    with contextlib.closing(world.internet.listen(INTERNET, 80)) as server:
        assert await reach(world.one, INTERNET, 80) == "open"
        accepted, (peer, _) = await asyncio.get_running_loop().sock_accept(server)
        accepted.close()
    assert peer == "198.18.0.1"


async def test_the_internet_does_not_reach_a_guest(world: World) -> None:
    ip("-n", world.internet.name, "route", "replace", "172.16.0.0/24", "via", "198.18.0.1")
    try:
        with contextlib.closing(world.one.listen("172.16.0.2", 80)):
            assert await reach(world.internet, "172.16.0.2", 80) == "silent"
            assert await reach(world.lab.host, "172.16.0.2", 80) == "open"
    finally:
        ip("-n", world.internet.name, "route", "del", "172.16.0.0/24")


@pytest.mark.parametrize("address", [GATEWAY, "198.18.0.1"])
async def test_a_guest_reaches_no_service_of_the_host(world: World, address: str) -> None:
    with contextlib.closing(world.lab.host.listen(address, 22)):
        assert await reach(world.one, address, 22) == "refused"
        assert await reach(world.lab.host, address, 22) == "open"


async def test_a_guest_does_not_reach_the_hosts_loopback(world: World) -> None:
    ip("-n", world.one.name, "route", "add", "127.0.0.9/32", "via", GATEWAY, "table", "main")
    with contextlib.closing(world.lab.host.listen("0.0.0.0", 2222)):
        assert await reach(world.lab.host, "127.0.0.9", 2222) == "open"
        wire = world.one.wire()
        udp = world.lab.host.udp("127.0.0.9", 5353)
        other = world.internet.udp(INTERNET, 5354)
        with wire, udp, other, pinned():
            to = gateway_mac(world.lab)
            wire.send(datagram(world.one.seat, "127.0.0.9", 5353, LIE, to_mac=to))
            wire.send(datagram(world.one.seat, INTERNET, 5354, TRUTH, to_mac=to))
            assert other.recv(100) == TRUTH
            udp.setblocking(False)
            with pytest.raises(BlockingIOError):
                udp.recv(100)


async def test_a_guest_does_not_reach_metadata_services(world: World) -> None:
    with contextlib.closing(world.internet.listen(METADATA, 80)):
        assert await reach(world.one, METADATA, 80) == "refused"
        assert await reach(world.lab.host, METADATA, 80) == "open"


async def test_a_rule_opens_one_port_of_the_host_and_one_link_local_address(world: World) -> None:
    with contextlib.closing(world.lab.host.listen("198.18.0.1", 8080)):
        assert await reach(world.one, "198.18.0.1", 8080) == "open"
    with contextlib.closing(world.internet.listen("169.254.7.7", 80)):
        assert await reach(world.one, "169.254.7.7", 80) == "open"
    with contextlib.closing(world.lab.host.listen("198.18.0.1", 8081)):
        assert await reach(world.one, "198.18.0.1", 8081) == "refused"


async def test_guests_do_not_reach_each_other(world: World) -> None:
    with contextlib.closing(world.two.listen("172.16.0.3", 80)):
        assert await reach(world.lab.host, "172.16.0.3", 80) == "open"
        assert await reach(world.one, "172.16.0.3", 80) == "refused"


async def test_no_frame_of_a_guest_comes_to_another(world: World) -> None:
    """Straight, by the router, to everybody, and in the other's name."""
    one, two = world.one.seat, world.two.seat
    with world.one.wire() as sender, world.two.wire() as receiver, world.lab.host.udp() as host, pinned():
        for to_mac in (two.guest_mac, gateway_mac(world.lab), BROADCAST, "33:33:00:00:00:01"):
            sender.send(datagram(one, two.guest_ip, 7, LIE, to_mac=to_mac))
            sender.send(datagram(one, "255.255.255.255", 7, LIE, to_mac=to_mac))
            sender.send(datagram(one, two.guest_ip, 7, LIE, to_mac=to_mac, mac=gateway_mac(world.lab), ip=GATEWAY))
        sender.send(arp(one, claims=two.guest_ip))
        host.sendto(TRUTH, (two.guest_ip, 7))
        seen = b""
        while not seen.endswith(TRUTH):
            seen = receiver.recv(2000)
            assert not seen.endswith(LIE)
            assert seen[6:12] != bytes.fromhex(one.guest_mac.replace(":", ""))


@pytest.mark.parametrize(
    ("mac", "address"),
    [
        ("", "172.16.0.3"),  # the other's IP address
        ("52:54:00:00:00:03", ""),  # the other's hardware address
        ("52:54:00:00:00:03", "172.16.0.3"),  # both
        ("52:54:00:00:00:99", "172.16.0.99"),  # nobody's
        ("", "172.16.0.1"),  # the host's
        ("", "203.0.113.5"),  # of elsewhere
    ],
)
async def test_a_guest_that_lies_about_its_address_is_not_heard(world: World, mac: str, address: str) -> None:
    """Neither beyond the host, nor on it where a rule allows it to speak."""
    seat, to = world.one.seat, gateway_mac(world.lab)
    with world.one.wire() as wire, pinned():
        for where, target, port in ((world.internet, INTERNET, 9), (world.lab.host, "198.18.0.1", 8080)):
            with where.udp(target, port) as server:
                wire.send(datagram(seat, target, port, LIE, to_mac=to, mac=mac, ip=address))
                wire.send(datagram(seat, target, port, TRUTH, to_mac=to))
                assert server.recv(100) == TRUTH


async def test_what_is_meant_for_a_guest_cannot_be_drawn_to_another(world: World) -> None:
    one, two = world.one.seat, world.two.seat
    with world.one.wire() as wire, world.lab.host.udp() as host, world.two.udp("172.16.0.3", 7) as server, pinned():
        wire.send(arp(one, claims=two.guest_ip))
        wire.send(arp(one, claims=two.guest_ip, mac=two.guest_mac))
        wire.send(datagram(one, INTERNET, 9, LIE, to_mac=gateway_mac(world.lab), mac=two.guest_mac))
        host.sendto(TRUTH, (two.guest_ip, 7))
        assert server.recv(100) == TRUTH
    neighbours = ip("-n", world.lab.id, "neigh", "show", "dev", world.lab.bridge.name)
    assert f"{two.guest_ip} lladdr {two.guest_mac} PERMANENT" in neighbours


async def test_a_guest_cannot_fill_the_hosts_neighbour_table(world: World) -> None:
    with world.one.wire() as wire, world.internet.udp(INTERNET, 9) as server, pinned():
        for number in range(100, 120):
            wire.send(arp(world.one.seat, claims=f"172.16.0.{number}"))
        wire.send(datagram(world.one.seat, INTERNET, 9, TRUTH, to_mac=gateway_mac(world.lab)))
        assert server.recv(100) == TRUTH
    assert "172.16.0.11" not in ip("-n", world.lab.id, "neigh", "show", "dev", world.lab.bridge.name)


async def test_dhcp_tells_every_guest_its_own_address(world: World) -> None:
    assert world.one.dhcp() == f"172.16.0.2 {GATEWAY} {GATEWAY}"
    assert world.two.dhcp() == f"172.16.0.3 {GATEWAY} {GATEWAY}"


async def test_the_hosts_dns_answers_guests_over_udp_and_tcp(world: World) -> None:
    question = bytes.fromhex("beef010000010000000000000776657273696f6e0462696e640000100003")  # version.bind TXT CH
    with world.one.udp() as asker:
        asker.sendto(question, (GATEWAY, 53))
        assert asker.recv(512)[:2] == question[:2]
    assert await reach(world.one, GATEWAY, 53) == "open"


def test_ipv6_is_off_on_the_bridge(world: World) -> None:
    assert "inet6" not in ip("-n", world.lab.id, "addr", "show", "dev", world.lab.bridge.name)
