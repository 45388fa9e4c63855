"""QEMU's command line, its user network's listing, and what is remembered about the host."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.base.errors import Invalid
from hatchvm.base.paths import VMPaths
from hatchvm.domain.image import Boot
from hatchvm.ports.vmm import LaunchPlan, NetPlan
from hatchvm.vmm.host import cpu_of
from hatchvm.vmm.qemu import cmdline
from hatchvm.vmm.qemu.cmdline import Machine
from hatchvm.vmm.qemu.reach import free_ports, is_free, parse_usernet

TCG: Final = Machine(binary="qemu", version="7.2", accel="tcg", tsc_khz=2_000_000, host_cpu=("AMD EPYC", "f"))
KVM: Final = replace(TCG, accel="kvm")
PLAN: Final = LaunchPlan(
    vm_id="vm-000000000001",
    paths=VMPaths(Path("/data, with/a=comma")),
    boot=Boot(kernel=Path("/i,x=y/kernel"), initrd=Path("/i/initrd"), rootfs=Path("/i,x=y/root"),
              rootfs_format="raw", boot_args="quiet"),
    boot_args="quiet",
    image_digest="d",
    vcpu_count=2,
    mem_mib=64,
    net=NetPlan(guest_ip="10.0.2.15", guest_mac="52:54:00:00:00:01", forwards={80: 30080, 22: 30022}),
    has_seed=True,
)  # fmt: skip
CPUINFO: Final = """processor	: 0
vendor_id	: AuthenticAMD
model		: 1
model name	: AMD EPYC 7763 64-Core Processor
cpu MHz		: 2445.424
flags		: fpu vme sse4a
bugs		: spectre_v1

"""
USERNET: Final = """Hub -1 (net0):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[ESTABLISHED]   22       127.0.0.1 30080       10.0.2.15    80     0     0
  TCP[SYN_SENT]      -1       127.0.0.1 30081       10.0.2.15    81     0     0
  TCP[HOST_FORWARD]  14       127.0.0.1 30080       10.0.2.15    80     0     0
  UDP[236 sec]       30       10.0.2.15 40000        10.0.2.3    53     0     0
"""


def args(plan: LaunchPlan = PLAN, machine: Machine = TCG, *, incoming: bool = False) -> list[str]:
    return cmdline.argv(plan, machine, qmp_fd=7, incoming=incoming)


def test_a_restore_differs_from_a_launch_only_in_what_is_incoming() -> None:
    assert args(incoming=True) == [*args(), "-S", "-incoming", "defer"]


def test_forwards_do_not_touch_the_devices() -> None:
    assert PLAN.net is not None
    other = replace(PLAN, net=replace(PLAN.net, forwards={}))
    different = [(one, two) for one, two in zip(args(), args(other), strict=True) if one != two]
    assert len(different) == 1
    assert different[0][0] == different[0][1] + ",hostfwd=tcp:127.0.0.1:30022-:22,hostfwd=tcp:127.0.0.1:30080-:80"
    assert (
        cmdline.devices_digest(PLAN) == cmdline.devices_digest(other) != cmdline.devices_digest(replace(PLAN, net=None))
    )


def test_nothing_of_the_data_directory_and_no_comma_of_an_image_becomes_an_option() -> None:
    assert not [argument for argument in args() if "with/a" in argument]
    (drive,) = (argument for argument in args() if argument.startswith("id=root"))
    assert drive.endswith(",backing.driver=raw,backing.file.filename=/i,,x=y/root")
    with pytest.raises(Invalid, match="line break"):
        args(replace(PLAN, boot=replace(PLAN.boot, kernel=Path("/a\nb"))))


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_boot_arguments_are_one_argument_whatever_they_are(text: str) -> None:
    plain, theirs = args(), args(replace(PLAN, boot_args=text))
    at = plain.index("-append") + 1
    assert theirs[at].startswith(text)
    assert theirs[:at] + theirs[at + 1 :] == plain[:at] + plain[at + 1 :]


def test_only_an_emulated_guest_is_told_its_clocks_frequency() -> None:
    assert cmdline.cmdline(PLAN, TCG) == "quiet tsc_early_khz=2000000"
    assert cmdline.cmdline(PLAN, KVM) == "quiet"


def test_an_emulated_cpu_is_the_same_on_every_host_and_a_real_one_is_not() -> None:
    assert (TCG.cpu, TCG.guest_cpu) == ("max", ("max", ""))
    assert (KVM.cpu, KVM.guest_cpu) == ("host", ("AMD EPYC", "f"))


def test_the_hosts_cpu() -> None:
    model, flags = cpu_of(CPUINFO)
    assert model == "AMD EPYC 7763 64-Core Processor"
    assert cpu_of(CPUINFO.replace("fpu vme", "vme fpu")) == (model, flags), "in any order"
    assert cpu_of(CPUINFO.replace("fpu vme", "fpu")) != (model, flags)
    assert cpu_of(CPUINFO + CPUINFO.replace("7763", "9999")) == (model, flags), "the first one"
    assert cpu_of("processor\t: 0\nmodel name\t: \nflags\t\t: fpu\n")[0] == ""
    assert cpu_of("")[0] == "unknown"
    assert cpu_of(Path("/proc/cpuinfo").read_text())[0]


@given(st.integers(0, 2**32 - 1).filter(lambda n: n & 0xFF not in (0, 255)))
def test_the_guests_gateway_and_name_server_are_others_than_itself(number: int) -> None:
    ip = str(ipaddress.IPv4Address(number))
    network, gateway, dns = cmdline.guest_network(NetPlan(guest_ip=ip, guest_mac="m"))
    assert len({ip, gateway, dns}) == 3
    assert all(ipaddress.ip_address(one) in ipaddress.ip_network(network) for one in (ip, gateway, dns))


def test_the_listing_of_the_user_network() -> None:
    assert [*parse_usernet(USERNET)] == [
        ("ESTABLISHED", 30080, 80),
        ("SYN_SENT", 30081, 81),
        ("HOST_FORWARD", 30080, 80),
    ]


def test_free_ports_are_free_and_none_is_named_twice() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert all(is_free(port) for port in ports)
    assert not set(free_ports(5, avoid=ports)) & set(ports)
    assert free_ports(0) == []
