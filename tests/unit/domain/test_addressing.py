"""Addresses on the bridge: whatever is asked for, a guest gets one that only it has, or a sentence."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.base.errors import Conflict, Exhausted, Invalid
from hatchvm.domain.addressing import bridge_address, bridge_mac, check_bridge, check_mac, mac_of

DEFAULT = IPv4Interface("172.16.0.1/24")


@st.composite
def bridges(draw: st.DrawFn, low: int = 8) -> IPv4Interface:
    network = IPv4Network((draw(st.integers(2**24, 2**32 - 1)), draw(st.integers(low, 30))), strict=False)
    host = draw(st.integers(1, network.num_addresses - 2))
    return IPv4Interface(f"{network.network_address + host}/{network.prefixlen}")


class Counting(set[str]):
    """A set that knows how often it was asked."""

    asked = 0

    def __contains__(self, key: object) -> bool:
        self.asked += 1
        return super().__contains__(key)


@given(bridges(low=26), st.data())
def test_the_lowest_free_address_is_given(bridge: IPv4Interface, data: st.DataObject) -> None:
    hosts = [str(host) for host in bridge.network.hosts() if host != bridge.ip]
    used = Counting(data.draw(st.sets(st.sampled_from(hosts))))
    free = [host for host in hosts if host not in set(used)]
    if free:
        assert bridge_address(None, bridge, used) == free[0]
    else:
        with pytest.raises(Exhausted, match="no free address in the bridge's network"):
            bridge_address(None, bridge, used)
    assert used.asked <= len(used) + 1


@given(bridges(), st.data())
def test_what_is_asked_for_is_given_if_a_guest_can_have_it(bridge: IPv4Interface, data: st.DataObject) -> None:
    first, last = int(bridge.network.network_address), int(bridge.network.broadcast_address)
    number = data.draw(st.integers(first, last) | st.integers(0, 2**32 - 1) | st.just(int(bridge.ip)))
    wanted = str(IPv4Address(number))
    if first < number < last and number != int(bridge.ip):
        assert bridge_address(wanted, bridge, set()) == wanted
        with pytest.raises(Conflict, match=f"guest_ip: {wanted} belongs to another VM"):
            bridge_address(wanted, bridge, {wanted})
    else:
        with pytest.raises(Invalid, match=f"guest_ip: .?{wanted}"):
            bridge_address(wanted, bridge, set())


@pytest.mark.parametrize("wanted", ["", "172.16.0", "172.16.0.02", "172.16.0.2/24", "::1", "x" * 1000])
def test_what_is_no_address_is_refused(wanted: str) -> None:
    with pytest.raises(Invalid, match=r"is not an address of the bridge's network 172\.16\.0\.0/24"):
        bridge_address(wanted, DEFAULT, set())


def test_a_guest_may_ask_for_a_hardware_address_in_any_case() -> None:
    assert check_mac("52:54:00:AB:CD:EF") == "52:54:00:ab:cd:ef"


@given(st.text(alphabet="0123456789abcdef"))
def test_a_hardware_address_of_a_vm_can_be_asked_for(vm_id: str) -> None:
    assert check_mac(mac_of(vm_id)) == mac_of(vm_id)


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ("52-54-00-ab-cd-ef", "is not a hardware address"),
        ("52:54:00:ab:cd", "is not a hardware address"),
        ("52:54:00:ab:cd:ef\n", "is not a hardware address"),
        ("ff:ff:ff:ff:ff:ff", "multicast"),
        ("01:00:5e:00:00:01", "multicast"),
        ("00:00:00:00:00:00", "not an address a guest can have"),
        (bridge_mac("fcbr0").upper(), "not an address a guest can have"),
    ],
)
def test_hardware_addresses_that_no_guest_can_have(wanted: str, why: str) -> None:
    with pytest.raises(Invalid, match=f"guest_mac: .*{why}"):
        check_mac(wanted)


@given(st.text(), st.text())
def test_bridges_have_unicast_addresses_that_tell_them_apart(one: str, other: str) -> None:
    assert int(bridge_mac(one)[:2], 16) & 3 == 2  # locally administered, of one card
    assert (bridge_mac(one) == bridge_mac(other)) == (one == other)


def test_a_bridge_has_place_for_the_addresses_that_were_given() -> None:
    check_bridge(DEFAULT, {"vm-1": "172.16.0.2", "vm-2": "172.16.0.254"})
    with pytest.raises(
        Conflict, match=r"172\.16\.0\.1/24 leaves no place for 2 VMs .*like vm-2 \(10\.0\.0\.1\); set it back"
    ):
        check_bridge(DEFAULT, {"vm-1": "172.16.0.2", "vm-2": "10.0.0.1", "vm-3": "172.16.0.1"})
