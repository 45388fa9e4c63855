"""Seeing SSH sessions that bypass Hatch."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from hatchvm.domain.activity import Tracked
from hatchvm.domain.lifecycle import State
from hatchvm.domain.vm import VM, VMSpec
from hatchvm.net.sessions import established

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
BRIDGE: Final = "172.16.0.1"
GUEST: Final = "172.16.0.10"
FORWARDED: Final = (
    "ipv4     2 tcp      6 431997 ESTABLISHED src=203.0.113.10 dst=203.0.113.20 sport=52341 dport={} "
    f"src={GUEST} dst=203.0.113.10 sport=22 dport=52341 [ASSURED] mark=0 zone=0 use=2"
)
DIRECT: Final = (
    "ipv4     2 tcp      6 431997 ESTABLISHED src={0} dst={1} sport=52341 dport=22 "
    "src={1} dst={0} sport=22 dport=52341 [ASSURED] mark=0 zone=0 use=2"
)


def a_vm(**fields: Any) -> VM:
    row: dict[str, Any] = {"state": State.RUNNING, "node_id": "n", "created_at": NOW, "updated_at": NOW}
    row |= {"guest_ip": GUEST, "tap_name": "tap0", "ssh_port": 16000}
    return VM(id="vm-1", spec=VMSpec(image_id="img-1"), **(row | fields))


class Kernel:
    """What connection tracking shows."""

    def __init__(self, root: Path) -> None:
        self.table = root / "nf_conntrack"
        self.settings = root

    def show(self, *lines: str) -> None:
        self.table.write_text("".join(f"{line}\n" for line in lines))

    def found(self, vm: VM | None = None, **options: Any) -> list[Tracked]:
        given: dict[str, Any] = {"own": {BRIDGE}, "silence_s": 900, **options}
        return established(vm or a_vm(), table=self.table, settings=self.settings, **given)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_a_forward_to_the_vms_port_counts_and_tells_its_peer(kernel: Kernel) -> None:
    kernel.show(FORWARDED.format(16000), FORWARDED.format(16001), "", "garbage")
    assert kernel.found() == [Tracked(peer="203.0.113.10", silent_s=3)]


@pytest.mark.parametrize("port", ["160001", "1600", "6000", "22", "16000x", "", "-16000"])
def test_a_port_is_compared_as_a_number(kernel: Kernel, port: str) -> None:
    kernel.show(FORWARDED.format(port))
    assert kernel.found() == []


def test_only_the_port_that_was_dialled_counts(kernel: Kernel) -> None:
    kernel.show("ipv4 2 tcp 6 431999 ESTABLISHED src=1.2.3.4 dst=5.6.7.8 sport=16000 dport=80 sport=80 dport=16000")
    assert kernel.found() == []


def test_a_vm_without_a_port_has_no_forward(kernel: Kernel) -> None:
    kernel.show(FORWARDED.format(16000), FORWARDED.format("None"))
    assert kernel.found(a_vm(ssh_port=None)) == []


@pytest.mark.parametrize("state", ["TIME_WAIT", "SYN_SENT", "SYN_RECV", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK", "CLOSE"])
def test_only_established_connections_count(kernel: Kernel, state: str) -> None:
    kernel.show(FORWARDED.format(16000).replace("ESTABLISHED", state))
    assert kernel.found() == []


def test_only_tcp_counts(kernel: Kernel) -> None:
    kernel.show(FORWARDED.format(16000).replace("tcp      6", "sctp 132"))
    assert kernel.found() == []


def test_short_forms_of_a_line_are_understood(kernel: Kernel) -> None:
    kernel.show(
        "ipv4 tcp 6 431997 ESTABLISHED src=10.0.0.5 dst=192.168.1.10 sport=52314 dport=16000 ...",
        "ipv6 10 tcp 6 431997 ESTABLISHED src=fe80::1 dst=fe80::2 sport=9 dport=16000 src=fe80::2 sport=22 dport=9",
        "ipv4 2 tcp 6 431997 ESTABLISHED sport=9 dport=16000",
    )
    assert [one.peer for one in kernel.found()] == ["10.0.0.5", "fe80::1", ""]


def test_lines_that_are_cut_off_are_no_sessions(kernel: Kernel) -> None:
    kernel.show("ipv4 2 tcp 6 9 ESTABLISHED", " ESTABLISHED dport=16000", "tcp 6 x ESTABLISHED dport=16000")
    assert kernel.found() == []


def test_a_connection_straight_to_a_guest_on_the_bridge_counts(kernel: Kernel) -> None:
    kernel.show(DIRECT.format("10.0.0.5", GUEST), DIRECT.format("10.0.0.6", "172.16.0.11"))
    assert [one.peer for one in kernel.found()] == ["10.0.0.5"]
    assert [one.peer for one in kernel.found(a_vm(ssh_port=None))] == ["10.0.0.5"]
    assert kernel.found(a_vm(tap_name=None)) == [], "every guest of a private network may have this address"
    kernel.show(DIRECT.format("10.0.0.5", GUEST).replace("dport=22", "dport=80"))
    assert kernel.found() == []


@pytest.mark.parametrize(
    ("src", "dst"),
    [(BRIDGE, GUEST), ("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "127.0.0.2"), ("::1", "::1"), ("10.0.0.7", "10.0.0.7")],
)
def test_what_this_host_dialled_itself_does_not_count(kernel: Kernel, src: str, dst: str) -> None:
    kernel.show(DIRECT.format(src, dst), DIRECT.format(src, dst).replace("dport=22", "dport=16000"))
    assert kernel.found() == []


@pytest.mark.parametrize(
    ("left_s", "silent_s"),
    [
        (432_000, 0),
        (432_001, 0),  # the timeout was changed while it was open
        (431_100, 900),
        (431_099, None),
        (301, None),  # nearly five days without a packet
        (300, 0),  # data under way, or a dying entry: five minutes more at most
        (9, 291),
        (0, 300),
    ],
)
def test_a_silent_session_stops_counting(kernel: Kernel, left_s: int, silent_s: int | None) -> None:
    kernel.show(FORWARDED.format(16000).replace("431997", str(left_s)))
    assert [one.silent_s for one in kernel.found()] == ([] if silent_s is None else [silent_s])


def test_the_kernels_own_timeouts_are_the_measure(kernel: Kernel) -> None:
    kernel.show(FORWARDED.format(16000).replace("431997", "6000"))
    assert kernel.found() == []
    (kernel.settings / "nf_conntrack_tcp_timeout_established").write_text("6400\n")
    assert [one.silent_s for one in kernel.found()] == [400]
    (kernel.settings / "nf_conntrack_tcp_timeout_established").write_text("120\n")
    kernel.show(FORWARDED.format(16000).replace("431997", "100"))
    assert [one.silent_s for one in kernel.found()] == [20]


def test_what_the_kernel_does_not_offer_is_none(kernel: Kernel) -> None:
    assert kernel.found() == []
    kernel.table.mkdir()
    assert kernel.found() == []
