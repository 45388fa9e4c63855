"""Every request that the driver can send, held against the published descriptions of the oldest and newest version."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.base.paths import VMPaths
from hatchvm.domain.image import Boot
from hatchvm.ports.vmm import LaunchPlan, NetPlan
from hatchvm.testing.firecracker import api
from hatchvm.testing.firecracker.api import Phase
from hatchvm.vmm.firecracker import requests
from hatchvm.vmm.firecracker.requests import Devices, Request

BOOT = Boot(kernel=Path("/k"), initrd=Path("/i"), rootfs=Path("/r"), rootfs_format="raw", boot_args="console=ttyS0")
NET = NetPlan(guest_ip="172.16.0.9", guest_mac="52:54:00:12:34:56", tap_name="vm-0123456789ab")
PLAN = LaunchPlan(
    vm_id="vm-0123456789ab",
    paths=VMPaths(Path("/vms/vm-0123456789ab")),
    boot=BOOT,
    boot_args="console=ttyS0",
    image_digest="d",
    vcpu_count=2,
    mem_mib=512,
    net=NET,
    has_seed=True,
)
plans = st.builds(
    replace,
    st.just(PLAN),
    boot=st.sampled_from([BOOT, replace(BOOT, initrd=None), replace(BOOT, rootfs=None)]),
    net=st.sampled_from([NET, None]),
    has_seed=st.booleans(),
    lazy=st.booleans(),
    vcpu_count=st.integers(1, 32),
    mem_mib=st.integers(1, 65536),
)
rates = st.none() | st.integers(1, 10**12)
devices = st.builds(Devices, disk_rate=rates, net_rate=rates, huge_pages=st.booleans())
versions = pytest.mark.parametrize("version", api.VERSIONS)


def check(version: str, request: Request, phase: Phase) -> None:
    body = dict(request.body) if request.method != "GET" else None
    assert api.check(version, request.method, request.path, body, phase) == [], request


@versions
@given(plan=plans, given=devices)
def test_a_boot(version: str, plan: LaunchPlan, given: Devices) -> None:
    sent = list(requests.boot(plan, given))
    for request in (*sent, requests.START):
        check(version, request, Phase.CONFIGURED)
    assert len({request.path for request in sent}) == len(sent)


@versions
@given(plan=plans, given=devices, clock=st.booleans())
def test_a_restore(version: str, plan: LaunchPlan, given: Devices, clock: bool) -> None:
    for request in requests.load(plan, given, clock=clock):
        check(version, request, Phase.FRESH)


@versions
@pytest.mark.parametrize("huge_pages", [False, True])
def test_a_life(version: str, huge_pages: bool) -> None:
    for request in (requests.PAUSE, requests.POWER_BUTTON, requests.LOOK):
        check(version, request, Phase.RUNNING)
    for request in (requests.RESUME, requests.LOOK, requests.capture(Devices(huge_pages=huge_pages))):
        check(version, request, Phase.PAUSED)


@given(plan=plans, given=devices)
def test_paths_are_names_in_the_box(plan: LaunchPlan, given: Devices) -> None:
    """What a state file remembers must be there under the same name on every host."""
    sent = [*requests.boot(plan, given), *requests.load(plan, given, clock=True), requests.capture(given)]
    for request in sent:
        for field, value in _leaves(dict(request.body)):
            if field.endswith("_path") or field == "path_on_host":
                assert re.fullmatch(r"[a-z.]+", value), (field, value)


def test_a_disk_is_seen_before_the_seed() -> None:
    paths = [request.path for request in requests.boot(PLAN, Devices())]
    assert paths.index("/drives/disk") < paths.index("/drives/seed")


def test_rates_are_a_second_s_worth() -> None:
    sent = {request.path: request.body for request in requests.boot(PLAN, Devices(disk_rate=1000, net_rate=500))}
    assert sent["/drives/disk"]["rate_limiter"]["bandwidth"] == {"size": 1000, "refill_time": 1000}
    for way in ("rx", "tx"):
        assert sent["/network-interfaces/eth0"][f"{way}_rate_limiter"]["bandwidth"]["size"] == 500
    unlimited = {request.path: request.body for request in requests.boot(PLAN, Devices())}
    assert "rate_limiter" not in str([unlimited["/drives/disk"], unlimited["/network-interfaces/eth0"]])


def test_huge_pages_are_never_tracked_and_always_faulted_in() -> None:
    huge = Devices(huge_pages=True)
    machine = next(request.body for request in requests.boot(PLAN, huge) if request.path == "/machine-config")
    assert machine["huge_pages"] == "2M"
    assert "track_dirty_pages" not in machine
    load = next(request.body for request in requests.load(PLAN, huge, clock=True) if request.path == "/snapshot/load")
    assert load["mem_backend"]["backend_type"] == "Uffd"
    assert not load["track_dirty_pages"]
    assert requests.capture(huge).body["snapshot_type"] == "Full"


@given(plan=plans, given=devices)
def test_the_device_list_s_digest_depends_on_devices_alone(plan: LaunchPlan, given: Devices) -> None:
    digest = requests.devices_digest(plan, given)
    same = replace(plan, vm_id="vm-x", mem_mib=1, lazy=not plan.lazy, boot_args="quiet")
    assert requests.devices_digest(same, replace(given, disk_rate=7, net_rate=None)) == digest
    assert requests.devices_digest(replace(plan, has_seed=not plan.has_seed), given) != digest
    assert requests.devices_digest(replace(plan, net=None if plan.net else NET), given) != digest
    assert requests.devices_digest(plan, replace(given, huge_pages=not given.huge_pages)) != digest


def test_nothing_is_sent_that_these_tests_do_not_see() -> None:
    """A new constant of the module joins the list above."""
    constants = {name for name, value in vars(requests).items() if isinstance(value, Request)}
    assert constants == {"START", "POWER_BUTTON", "PAUSE", "RESUME", "LOOK", "CONSOLE"}
    assert {field.name for field in fields(Devices)} == {"disk_rate", "net_rate", "huge_pages"}


def _leaves(value: Any, field: str = "") -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [leaf for name, each in value.items() for leaf in _leaves(each, name)]
    return [(field, value)] if isinstance(value, str) else []
