"""The bridge network from its making to its removal: what it takes over, puts right, refuses, and leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Interface
from pathlib import Path
from typing import cast

import pytest

from hatchvm.base import tasks
from hatchvm.base.errors import Conflict, Unavailable, Upstream, UpstreamTimeout
from hatchvm.base.process import start_ticks
from hatchvm.net.bridge.bridge import BridgeNetwork
from hatchvm.net.bridge.dhcp import DHCP
from hatchvm.net.bridge.settings import Bridge, parse_allow
from hatchvm.ports.vmm import Handle
from hatchvm.testing.net.wires import GATEWAY, Far, Lab, ip

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which needs root"),
    pytest.mark.xdist_group("bridge"),
]


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    lab = Lab()
    try:
        await lab.network.open()
        yield lab
    finally:
        lab.unplug()
        await lab.network.remove()


def dnsmasq(bridge: Bridge) -> int:
    return int((bridge.folder / "dnsmasq.pid").read_text())


def end(pid: int) -> None:
    """Kill it, and return when it is gone."""
    watched = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        assert select.select([watched], [], [], 10)[0]
    finally:
        os.close(watched)


async def after_a_crash(lab: Lab, **changes: object) -> BridgeNetwork:
    """What the next daemon does."""
    lab.network.close()
    lab.bridge = replace(lab.bridge, **changes)  # type: ignore[arg-type]
    lab.network = BridgeNetwork(lab.bridge)
    await lab.network.open()
    return lab.network


async def test_check_says_how(lab: Lab) -> None:
    assert await lab.network.check() == f"bridge fcbr0 in the network namespace {lab.id}, 172.16.0.1/24"


async def test_a_tap_lives_as_long_as_its_descriptor(lab: Lab) -> None:
    seat = lab.seat(2)
    tap = await lab.network.attach(seat)
    assert tap is not None
    port = ip("-n", lab.id, "-d", "link", "show", "dev", str(seat.tap_name))
    copy = os.dup(tap)
    os.close(tap)
    assert seat.tap_name in lab.links()
    os.close(copy)
    assert seat.tap_name not in lab.links()
    for expected in ("master fcbr0", "state forwarding", "isolated on", "locked on", "learning off", "flood off"):
        assert expected in port
    assert " tun type tap " in port and " vnet_hdr on" in port


async def test_a_guest_gets_its_tap_when_its_former_vmm_has_ended(lab: Lab) -> None:
    former = await lab.network.attach(lab.seat(2))
    assert former is not None
    waiting = tasks.spawn(lab.network.attach(lab.seat(2)), name="attach again")
    done, _ = await asyncio.wait([waiting], timeout=0.1)
    assert not done
    os.close(former)
    tap = await waiting
    assert tap is not None
    os.close(tap)


async def test_a_vmm_that_does_not_end_keeps_its_tap(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hatchvm.net.bridge.bridge._HELD_S", 0.0)
    former = await lab.network.attach(lab.seat(2))
    assert former is not None
    with pytest.raises(Unavailable, match="still held by its former VMM"):
        await lab.network.attach(lab.seat(2))
    os.close(former)


async def test_an_attach_that_is_cancelled_leaves_no_tap(lab: Lab) -> None:
    await lab.network.admit(lab.seat(2))
    for _ in range(5):
        attaching = tasks.spawn(lab.network.attach(lab.seat(2)), name="attach")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await tasks.cancel_and_wait(attaching)
    tap = await lab.network.attach(lab.seat(2))  # waits while one is there
    assert tap is not None
    os.close(tap)
    assert lab.seat(2).tap_name not in lab.links()


async def test_the_next_daemon_takes_everything_over(lab: Lab) -> None:
    await lab.network.admit(lab.seat(2))
    guest = lab.guest(lab.seat(2))
    pid, rules = dnsmasq(lab.bridge), lab.rules()
    await after_a_crash(lab)
    assert dnsmasq(lab.bridge) == pid
    assert lab.rules() == rules
    assert guest.dhcp() == f"172.16.0.2 {GATEWAY} {GATEWAY}"


async def test_the_next_daemon_may_have_another_address(lab: Lab) -> None:
    network = await after_a_crash(lab, cidr=IPv4Interface("172.16.5.1/23"))
    addresses = ip("-n", lab.id, "-4", "addr", "show", "dev", "fcbr0")
    assert "172.16.5.1/23" in addresses and GATEWAY not in addresses
    seat = replace(lab.seat(2), guest_ip="172.16.4.9")
    await network.admit(seat)
    assert lab.guest(seat).dhcp() == "172.16.4.9 172.16.5.1 172.16.5.1"


async def test_vms_outside_of_the_network_are_refused(lab: Lab) -> None:
    network = await after_a_crash(lab, cidr=IPv4Interface("172.16.5.1/24"))
    with pytest.raises(Conflict, match=r"leaves no place for 1 VMs .*vm-000000000002 \(172.16.0.2\); set it back"):
        await network.sweep([lab.seat(2)])
    with pytest.raises(Conflict, match="leaves no place"):
        await network.attach(lab.seat(2))


async def test_a_bridge_has_one_owner(lab: Lab) -> None:
    with pytest.raises(Conflict, match=f"another Hatch uses the bridge fcbr0 in the network namespace {lab.id}"):
        await BridgeNetwork(lab.bridge).open()
    with pytest.raises(Conflict, match="another Hatch"):
        await BridgeNetwork(lab.bridge).remove()


async def test_a_device_of_somebody_else_is_left_alone(lab: Lab) -> None:
    ip("-n", lab.id, "link", "add", "br7", "type", "bridge")
    other = BridgeNetwork(replace(lab.bridge, name="br7"))
    with pytest.raises(Conflict, match="network device br7 that Hatch did not make"):
        await other.open()
    assert "br7" not in lab.rules() and "br7" not in ip("-n", lab.id, "-4", "addr")
    await other.remove()
    assert "br7" in lab.links()


async def test_dnsmasq_is_started_again_if_it_died(lab: Lab) -> None:
    await lab.network.admit(lab.seat(2))
    end(dnsmasq(lab.bridge))
    tap = await lab.network.attach(lab.seat(2))
    assert tap is not None
    os.close(tap)
    assert lab.guest(lab.seat(2)).dhcp() is not None


async def test_dnsmasq_is_started_anew_if_it_was_started_otherwise(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = dnsmasq(lab.bridge)
    monkeypatch.setattr(DHCP, "_servers", lambda _: Path("/dev/null"))
    await after_a_crash(lab)
    assert dnsmasq(lab.bridge) != pid
    assert start_ticks(pid) is None


async def _connects(one: Far, two: Far, port: int) -> bool:
    """False if a rule refuses it. Raises TimeoutError if nothing does."""
    with contextlib.closing(two.listen("172.16.0.3", port)), contextlib.closing(one.tcp()) as sock:
        try:
            async with asyncio.timeout(10):
                await asyncio.get_running_loop().sock_connect(sock, ("172.16.0.3", port))
        except OSError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            return False
        return True


async def test_a_rule_lets_guests_reach_each_other() -> None:
    lab = Lab(allow=parse_allow("172.16.0.0/24:80"))
    await lab.network.open()
    try:
        for seat in (lab.seat(2), lab.seat(3)):
            await lab.network.admit(seat)
        one, two = lab.guest(lab.seat(2)), lab.guest(lab.seat(3))
        one.give("172.16.0.2")
        two.give("172.16.0.3")
        assert await _connects(one, two, 80)
        assert not await _connects(one, two, 81)
    finally:
        lab.unplug()
        await lab.network.remove()


async def test_who_flushes_all_rules_opens_nothing_for_good(lab: Lab) -> None:
    await lab.network.admit(lab.seat(2))
    before = lab.rules()
    lab.nft("flush", "ruleset")
    await lab.network.forget(lab.seat(3))
    assert lab.rules() == before


async def test_only_guests_with_a_seat_get_an_address(lab: Lab) -> None:
    await lab.network.admit(lab.seat(2))
    await lab.network.forget(lab.seat(2))
    assert lab.guest(lab.seat(2)).dhcp(tries=1) is None


async def test_an_address_can_be_given_to_another(lab: Lab) -> None:
    """dnsmasq would keep it for the first, whose lease does not end, had it not been told."""
    first, second = lab.seat(2), replace(lab.seat(3), guest_ip="172.16.0.2")
    await lab.network.admit(first)
    assert lab.guest(first).dhcp() is not None
    await lab.network.forget(first)
    await lab.network.forget(first)
    await lab.network.admit(second)
    assert lab.guest(second).dhcp() == f"172.16.0.2 {GATEWAY} {GATEWAY}"


async def test_a_sweep_leaves_the_seats_of_known_vms_only(lab: Lab) -> None:
    known, stray, new = lab.seat(2), lab.seat(3), lab.seat(4)
    for seat in (known, stray):
        await lab.network.admit(seat)
    tap = await lab.network.attach(stray)
    assert tap is not None
    os.close(tap)
    await lab.network.sweep([known, new])
    assert sorted(path.name for path in (lab.bridge.folder / "hosts").iterdir()) == [known.tap_name, new.tap_name]
    assert stray.guest_mac not in lab.rules()
    neighbours = ip("-n", lab.id, "neigh", "show", "dev", "fcbr0")
    assert all(f"{seat.guest_ip} lladdr {seat.guest_mac} PERMANENT" in neighbours for seat in (known, new))
    assert stray.guest_mac not in neighbours


async def test_two_bridges_do_not_touch_each_other(lab: Lab) -> None:
    await lab.network.admit(lab.seat(2))
    before = lab.rules(), lab.links(), dnsmasq(lab.bridge)
    other = BridgeNetwork(replace(lab.bridge, name="br-2", cidr=IPv4Interface("172.17.0.1/30")))
    await other.open()
    await other.admit(replace(lab.seat(3), guest_ip="172.17.0.2"))
    assert lab.links() == before[1] | {"br-2"}
    await other.remove()
    assert (lab.rules(), lab.links(), dnsmasq(lab.bridge)) == before
    assert lab.guest(lab.seat(2)).dhcp() == f"172.16.0.2 {GATEWAY} {GATEWAY}"


async def dial(lab: Lab, port: int, *, patience_s: float = 0.0, deadline_s: float = 30.0) -> socket.socket:
    now = asyncio.get_running_loop().time()
    return await lab.network.dial(
        lab.seat(2), cast(Handle, None), port, patient_until=now + patience_s, deadline=now + deadline_s
    )


async def test_dialling_waits_for_a_guest_that_is_silent_and_then_refuses(lab: Lab) -> None:
    await lab.network.admit(lab.seat(2))
    dialling = tasks.spawn(dial(lab, 80, patience_s=20), name="dial")
    guest = lab.guest(lab.seat(2))  # no address yet: it does not answer
    done, _ = await asyncio.wait([dialling], timeout=0.05)
    assert not done
    guest.give("172.16.0.2")
    done, _ = await asyncio.wait([dialling], timeout=0.5)
    assert not done  # now it refuses
    with contextlib.closing(guest.listen("172.16.0.2", 80)) as server:
        with contextlib.closing(await dialling) as sock:
            assert sock.getpeername() == ("172.16.0.2", 80) and sock.gettimeout() == 0.0
        accepted, (peer, _) = await asyncio.get_running_loop().sock_accept(server)
        accepted.close()
    assert peer == GATEWAY


async def test_dialling_a_guest_that_refuses_or_is_silent_has_an_end(lab: Lab) -> None:
    await lab.network.admit(lab.seat(2))
    guest = lab.guest(lab.seat(2))
    with pytest.raises(UpstreamTimeout, match="upstream timed out"):
        await dial(lab, 80, deadline_s=0.1)
    guest.give("172.16.0.2")
    with pytest.raises(Upstream, match="upstream refused connection"):
        await dial(lab, 80)


async def test_nothing_is_left_after_a_removal() -> None:
    lab = Lab()
    await lab.network.open()
    tap = await lab.network.attach(lab.seat(2))
    assert tap is not None
    with pytest.raises(Conflict, match="1 guests are on the bridge fcbr0; stop them first"):
        await lab.network.remove()
    pid = dnsmasq(lab.bridge)
    os.close(tap)
    await lab.network.remove()
    await lab.network.remove()
    assert start_ticks(pid) is None
    assert not lab.bridge.folder.exists()
    assert lab.id not in ip("netns")
