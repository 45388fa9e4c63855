"""What the domain decides: idleness, admission, addresses, names, back-off."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.base.errors import Exhausted, Invalid
from hatchvm.domain import addressing, admission, backoff
from hatchvm.domain.idle import judge
from hatchvm.domain.image import Boot, Image, Template
from hatchvm.domain.lifecycle import State
from hatchvm.domain.route import RESERVED, check_subdomain, random_subdomain, subdomain_of
from hatchvm.domain.vm import VM, NewVM, VMSpec

NOW: Final = datetime(2026, 3, 6, tzinfo=UTC)
DEFAULTS: Final = admission.Defaults(image="tiny", vcpu_count=2, mem_mib=256, boot_args=None)
IMAGE: Final = Image(
    id="img-1",
    name="tiny",
    boot=Boot(kernel=Path("/k"), initrd=None, rootfs=None, rootfs_format="raw", boot_args=""),
    digest="d",
    size_bytes=1,
    created_at=NOW,
)
DOMAINS: Final = ["hatch.local", "hatch.localhost"]


def vm(*, state: State = State.RUNNING, idle_timeout: str | None = None) -> VM:
    spec = VMSpec(image_id="img-1", idle_timeout=idle_timeout)
    return VM(id="vm-1", spec=spec, state=state, node_id="n", created_at=NOW, updated_at=NOW)


def verdict(one: VM, **facts: Any) -> tuple[bool, str]:
    known: dict[str, Any] = {"last_active_at": None, "routes": 1, "holds": 0, "default_timeout_s": 60.0}
    known |= {"now": NOW + timedelta(seconds=60)}
    found = judge(one, **(known | facts))
    return found.suspend, found.reason


@pytest.mark.parametrize(
    ("one", "facts", "expected"),
    [
        (vm(), {}, (True, "idle")),
        (vm(), {"now": NOW + timedelta(seconds=59.9)}, (False, "not idle long enough")),
        (vm(), {"last_active_at": NOW + timedelta(seconds=1)}, (False, "not idle long enough")),
        (vm(), {"last_active_at": NOW - timedelta(days=1)}, (True, "idle")),
        (vm(), {"routes": 0}, (False, "no routes")),
        (vm(), {"holds": 2}, (False, "2 open connections")),
        (vm(state=State.SNAPSHOTTED), {}, (False, "not running")),
        (vm(idle_timeout="never"), {}, (False, "idle_timeout is never")),
        (vm(idle_timeout="2m"), {}, (False, "not idle long enough")),
        (vm(idle_timeout="10s"), {"now": NOW + timedelta(seconds=11)}, (True, "idle")),
        (vm(idle_timeout="0"), {"now": NOW}, (True, "idle")),
        (vm(), {"now": NOW - timedelta(hours=1)}, (False, "not idle long enough")),
    ],
)
def test_idleness(one: VM, facts: dict[str, Any], expected: tuple[bool, str]) -> None:
    assert verdict(one, **facts) == expected


def specify(new: NewVM, *, host_mem_mib: int = 1024) -> VMSpec:
    return admission.specify(new, None, IMAGE, DEFAULTS, host_mem_mib=host_mem_mib)


def test_what_nobody_asked_for_is_the_nodes() -> None:
    spec = specify(NewVM())
    assert (spec.vcpu_count, spec.mem_mib, spec.enable_network, spec.boot_args) == (2, 256, True, None)


def test_a_template_fills_in_and_the_request_wins() -> None:
    defaults = MappingProxyType({"mem_mib": 64, "vcpu_count": 4, "enable_network": False, "snapshot_id": "snap-1"})
    template = Template(id="tpl-1", name="t", defaults=defaults, created_at=NOW)
    new = admission.with_template(NewVM(mem_mib=128), template)
    assert (new.mem_mib, new.vcpu_count, new.enable_network, new.snapshot_id) == (128, 4, False, None)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"vcpu_count": 0}, "vcpu_count"),
        ({"vcpu_count": 33}, "vcpu_count"),
        ({"mem_mib": 31}, "mem_mib"),
        ({"mem_mib": 2**21}, "mem_mib"),
    ],
)
def test_what_no_vm_can_have(fields: dict[str, Any], names: str) -> None:
    with pytest.raises(Invalid, match=names):
        specify(NewVM(**fields))


def test_more_memory_than_the_host_has() -> None:
    with pytest.raises(Exhausted, match="the host has 100 MiB"):
        specify(NewVM(mem_mib=101), host_mem_mib=100)


def test_a_copy_keeps_what_its_memory_depends_on() -> None:
    source = {"mem_mib": 64, "guest_mac": "52:54:00:00:00:01"}
    assert admission.as_copy(NewVM(name="n"), source).mem_mib == 64
    assert admission.as_copy(NewVM(mem_mib=64), source).guest_mac == source["guest_mac"]
    with pytest.raises(Invalid, match=r"mem_mib: .*\(64\)"):
        admission.as_copy(NewVM(mem_mib=65), source)


@given(st.text())
def test_a_mac_is_local_unicast_and_the_same_for_the_same_vm(vm_id: str) -> None:
    mac = addressing.mac_of(vm_id)
    assert re.fullmatch("([0-9a-f]{2}:){5}[0-9a-f]{2}", mac)
    assert int(mac[:2], 16) & 0b11 == 0b10
    assert addressing.mac_of(vm_id) == mac


@pytest.mark.parametrize(
    "wanted",
    [
        "",
        "x",
        "10.0.0",
        "10.0.0.256",
        "::1",
        "127.0.0.1",
        "224.0.0.1",
        "0.0.0.0",
        "169.254.1.1",
        "10.0.0.0",
        "10.0.0.255",
    ],
)
def test_addresses_no_guest_can_have(wanted: str) -> None:
    with pytest.raises(Invalid, match="guest_ip"):
        addressing.user_guest_ip(wanted)


def test_addresses_a_guest_can_have() -> None:
    assert addressing.user_guest_ip(None) == addressing.USER_GUEST_IP
    assert addressing.user_guest_ip("172.16.0.9") == "172.16.0.9"


def test_the_lowest_free_port() -> None:
    assert addressing.first_free(range(10, 13), {10, 12}) == 11
    with pytest.raises(Exhausted, match=r"10\.\.12"):
        addressing.first_free(range(10, 13), {10, 11, 12})


@given(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True))
def test_a_good_subdomain_is_taken_and_found_in_any_host_header(label: str) -> None:
    if label in RESERVED:
        with pytest.raises(Invalid, match="is reserved"):
            check_subdomain(label)
    else:
        assert check_subdomain(label) == label
    for host in (f"{label}.hatch.local", f"{label.upper()}.HATCH.localhost:9090", f"{label}.hatch.local:"):
        assert subdomain_of(host, DOMAINS) == label


@pytest.mark.parametrize("label", ["", "-a", "a-", "A", "a.b", "a_b", "ä", "a\n", "x" * 64])
def test_bad_subdomains(label: str) -> None:
    with pytest.raises(Invalid, match="subdomain must have 1 to 63 characters"):
        check_subdomain(label)


@pytest.mark.parametrize(
    "host",
    ["", "hatch.local", ".hatch.local", "a.b.hatch.local", "a.other", "a.hatch.local:x", "a.hatch.local:٣", "[::1]:80",
     "a.hatch.local.", "xhatch.local", "-a.hatch.local"],
)  # fmt: skip
def test_hosts_that_lead_nowhere(host: str) -> None:
    assert subdomain_of(host, DOMAINS) is None


@given(st.text())
def test_any_host_header_is_a_label_or_nothing(host: str) -> None:
    found = subdomain_of(host, DOMAINS)
    assert found is None or re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", found)


def test_there_are_34_reserved_subdomains_and_random_ones_are_good() -> None:
    assert len(RESERVED) == 34
    drawn = {random_subdomain() for _ in range(100)}
    assert len(drawn) == 100
    assert all(re.fullmatch("[a-z0-9]{12}", check_subdomain(one)) for one in drawn)


def test_the_back_off_doubles_up_to_its_cap() -> None:
    assert [backoff.delay_s(n) for n in range(-1, 9)] == [0, 0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert backoff.delay_s(10**9) == 60
