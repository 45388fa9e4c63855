"""Every request that the driver sends to a Firecracker, as pure functions of a launch plan.

Paths are names inside the VM's box, so they are the same for every VM on every host: a state file holds the drives'
paths, and nothing can override them. Only what every supported version has is sent, nothing that is deprecated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal

from hatchvm.base.units import MIB
from hatchvm.ports.vmm import LaunchPlan
from hatchvm.vmm.firecracker.bootargs import boot_args

#: Names inside the box.
KERNEL, INITRD, DISK, SEED, MEMORY, STATE = "kernel", "initrd", "disk", "seed", "memory", "state"
API, VSOCK, FAULTS, LOG, METRICS = "api.sock", "vsock", "faults.sock", "log", "metrics"
#: What a capture writes: changed pages and a new state.
CHANGES, NEW_STATE = "changes", "state.new"

CARD: Final = "eth0"
#: Every VMM has its own socket, so all guests may have the same number.
_GUEST_CID: Final = 3
#: A guest writes its console to the host's disk: a burst (a boot's messages), then so much a second.
_CONSOLE: Final = {"size": MIB, "refill_time": 1000}


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `body` is JSON; empty for GET."""

    method: Literal["GET", "PUT", "PATCH"]
    path: str
    body: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """What VMs get beside their plan. Rates are bytes per second, None: unlimited.

    `huge_pages`: 2 MiB pages from the host's pool, which the host must have set aside (`vm.nr_hugepages`).
    """

    disk_rate: int | None = None
    net_rate: int | None = None
    huge_pages: bool = False


START: Final = Request("PUT", "/actions", {"action_type": "InstanceStart"})
POWER_BUTTON: Final = Request("PUT", "/actions", {"action_type": "SendCtrlAltDel"})
PAUSE: Final = Request("PATCH", "/vm", {"state": "Paused"})
RESUME: Final = Request("PATCH", "/vm", {"state": "Resumed"})
LOOK: Final = Request("GET", "/")
#: Not kept in a state file, so it is sent before a load, too.
CONSOLE: Final = Request("PUT", "/serial", {"rate_limiter": _CONSOLE})


def boot(plan: LaunchPlan, devices: Devices) -> Iterator[Request]:
    """Everything before START. Device names in the guest follow this order: the disk is `vda`."""
    yield CONSOLE
    yield Request("PUT", "/machine-config", _machine(plan, devices))
    source = {"kernel_image_path": KERNEL, "boot_args": boot_args(plan)}
    yield Request("PUT", "/boot-source", source | ({"initrd_path": INITRD} if plan.boot.initrd else {}))
    yield from _devices(plan, devices)


def load(plan: LaunchPlan, devices: Devices, *, clock: bool) -> Iterator[Request]:
    """From a fresh process to a paused guest. `clock`: let the guest's clock jump to the host's time."""
    yield CONSOLE
    backend = {"backend_type": "Uffd", "backend_path": FAULTS} if by_faults(plan, devices) else _FILE
    body: dict[str, Any] = {
        "snapshot_path": STATE,
        "mem_backend": backend,
        "track_dirty_pages": not devices.huge_pages,
        "resume_vm": False,
    }
    if clock:
        body["clock_realtime"] = True
    if plan.net is not None:
        body["network_overrides"] = [{"iface_id": CARD, "host_dev_name": plan.net.tap_name}]
    yield Request("PUT", "/snapshot/load", body)


def by_faults(plan: LaunchPlan, devices: Devices) -> bool:
    """Whether a restored guest gets its memory by page faults: Firecracker maps no file with huge pages."""
    return plan.lazy or devices.huge_pages


def capture(devices: Devices) -> Request:
    """Write the state, and the pages that were written since the last capture: into a file that has earlier ones.

    With huge pages nothing is tracked: the whole memory is written.
    """
    kind = "Full" if devices.huge_pages else "Diff"
    body = {"snapshot_type": kind, "snapshot_path": NEW_STATE, "mem_file_path": CHANGES}
    return Request("PUT", "/snapshot/create", body)


def devices_digest(plan: LaunchPlan, devices: Devices) -> str:
    """Names the device list, for a snapshot's stamp. Rates are no part of it: a VM keeps those it was booted with."""
    plain = Devices(huge_pages=devices.huge_pages)
    listed = [(each.path, sorted(each.body)) for each in _devices(plan, plain)]
    listed.append(("huge pages" if devices.huge_pages else "pages", []))
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]


_FILE: Final = {"backend_type": "File", "backend_path": MEMORY}


def _machine(plan: LaunchPlan, devices: Devices) -> dict[str, Any]:
    """Tracking breaks huge mappings up, so it is one or the other."""
    machine = {"vcpu_count": plan.vcpu_count, "mem_size_mib": plan.mem_mib, "smt": False}
    return machine | ({"huge_pages": "2M"} if devices.huge_pages else {"track_dirty_pages": True})


def _devices(plan: LaunchPlan, devices: Devices) -> Iterator[Request]:
    if plan.boot.rootfs is not None:
        # With a cache that the guest's flushes empty, what the guest believes to be on disk is there.
        disk = {"drive_id": "disk", "path_on_host": DISK, "is_root_device": False, "is_read_only": False}
        disk |= {"cache_type": "Writeback", "io_engine": "Sync"}
        yield Request("PUT", "/drives/disk", disk | _limited("rate_limiter", devices.disk_rate))
    if plan.has_seed:
        seed = {"drive_id": "seed", "path_on_host": SEED, "is_root_device": False, "is_read_only": True}
        yield Request("PUT", "/drives/seed", seed)
    if plan.net is not None:
        card = {"iface_id": CARD, "host_dev_name": plan.net.tap_name, "guest_mac": plan.net.guest_mac}
        limits = _limited("rx_rate_limiter", devices.net_rate) | _limited("tx_rate_limiter", devices.net_rate)
        yield Request("PUT", f"/network-interfaces/{CARD}", card | limits)
    yield Request("PUT", "/vsock", {"guest_cid": _GUEST_CID, "uds_path": VSOCK})
    yield Request("PUT", "/entropy")
    # Freed pages go back to the host, and are zeros in snapshots. Huge pages cannot be given back.
    balloon = {"amount_mib": 0, "deflate_on_oom": True, "free_page_reporting": not devices.huge_pages}
    yield Request("PUT", "/balloon", balloon)


def _limited(name: str, rate: int | None) -> dict[str, Any]:
    """A token bucket of a second's worth."""
    return {name: {"bandwidth": {"size": rate, "refill_time": 1000}}} if rate else {}
