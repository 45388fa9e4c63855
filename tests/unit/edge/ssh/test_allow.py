"""Which clients may connect, and where the gateway listens for them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.edge.ssh.allow import Network, admits, hosts, parse

V4 = st.ip_addresses(v=4)
V6 = st.ip_addresses(v=6)


@pytest.mark.parametrize(
    ("text", "networks"),
    [
        ("127.0.0.1/32", ["127.0.0.1/32"]),
        (" 10.0.0.0/8 ,2001:db8::/32, ", ["10.0.0.0/8", "2001:db8::/32"]),
        ("192.0.2.7", ["192.0.2.7/32"]),
        ("10.1.2.3/8", ["10.0.0.0/8"]),
        ("::1", ["::1/128"]),
        ("::ffff:10.0.0.0/104", ["10.0.0.0/8"]),
        ("0.0.0.0/0,::/0", ["0.0.0.0/0", "::/0"]),
    ],
)
def test_networks_are_read(text: str, networks: list[str]) -> None:
    assert parse(text) == tuple(ip_network(network) for network in networks)


@pytest.mark.parametrize(
    "text", ["10.0.0.0/33", "10.0.0/8", "localhost", "10.0.0.0/8;::1", "fe80::1%eth0/64/3", "a,10.0.0.1"]
)
def test_what_is_no_network_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"^'[^']+' is not a network; write it like 127\.0\.0\.1/32"):
        parse(text)


@pytest.mark.parametrize("text", ["", " , "])
def test_nobody_is_no_answer(text: str) -> None:
    with pytest.raises(ValueError, match="names no network"):
        parse(text)


@given(V4, st.integers(0, 32), V4)
def test_v4_clients_are_admitted_by_network_also_when_written_as_v6(
    base: IPv4Address, length: int, peer: IPv4Address
) -> None:
    allowed = parse(f"2001:db8::/32,{base}/{length}")
    expected = (int(peer) ^ int(base)) >> (32 - length) == 0
    assert admits(allowed, str(peer)) is expected
    assert admits(allowed, f"::ffff:{peer}") is expected
    assert admits(parse(f"::ffff:{base}/{length + 96}"), str(peer)) is expected


@given(V6, st.integers(0, 128), V6)
def test_v6_clients_are_admitted_by_network(base: IPv6Address, length: int, peer: IPv6Address) -> None:
    allowed = parse(f"{base}/{length}")
    if peer.ipv4_mapped is None and not isinstance(allowed[0], IPv4Network):
        assert admits(allowed, str(peer)) is ((int(peer) ^ int(base)) >> (128 - length) == 0)


def test_a_link_local_client_is_known_without_its_zone() -> None:
    assert admits(parse("fe80::/10"), "fe80::1%eth0")


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("127.0.0.1/32", ("127.0.0.1",)),
        ("::1,127.0.0.0/8", ("127.0.0.1", "::1")),
        ("10.0.0.0/8", ("0.0.0.0",)),
        ("127.0.0.1,2001:db8::/32", ("0.0.0.0", "::")),
        ("0.0.0.0/0", ("0.0.0.0",)),
        ("::/0", ("::",)),
    ],
)
def test_it_listens_no_wider_than_needed(text: str, where: tuple[str, ...]) -> None:
    assert hosts(parse(text)) == where


@given(st.lists(st.one_of(st.builds(IPv4Network, V4), st.builds(IPv6Network, V6)), min_size=1))
def test_it_listens_for_every_family_that_may_connect(networks: list[Network]) -> None:
    assert {6 if ":" in host else 4 for host in hosts(networks)} == {network.version for network in networks}
