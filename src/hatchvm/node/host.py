"""What every sequence of this floor works with, and the launch plan of a VM."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from hatchvm.base.errors import Unavailable, Unsupported
from hatchvm.base.paths import DataPaths
from hatchvm.domain.image import Image
from hatchvm.domain.snapshot import Stamp
from hatchvm.domain.vm import VM
from hatchvm.node.lazy import Pagers
from hatchvm.ports.vmm import Driver, LaunchPlan, NetPlan
from hatchvm.snapshots.engine import SnapshotEngine

SSH_PORT: Final = 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One host's parts. `boot_id` names this boot of the host."""

    paths: DataPaths
    driver: Driver
    engine: SnapshotEngine | None
    pagers: Pagers
    boot_id: str

    def snapshots(self) -> SnapshotEngine:
        if self.engine is None:
            raise Unavailable("snapshot storage not configured")
        return self.engine


async def ensure_fit(host: Host, stamp: Stamp, launch_plan: LaunchPlan, *, instead: str) -> None:
    """Raises Unsupported if memory with this stamp cannot be resumed here; `instead`: what can be done."""
    difference = stamp.difference(await host.driver.stamp(launch_plan))
    if difference is not None:
        raise Unsupported(f"the saved memory does not fit this host: {difference}; {instead}")


def plan(
    host: Host,
    vm: VM,
    image: Image,
    *,
    ports: Collection[int] = (),
    accepted: frozenset[int] = frozenset(),
    lazy: bool = False,
) -> LaunchPlan:
    """How to start this VM. `ports`: guest ports that will be dialled, reachable from the start."""
    net = None
    if vm.guest_ip is not None and vm.guest_mac is not None:
        forwards = dict.fromkeys(ports, 0)
        net = NetPlan(guest_ip=vm.guest_ip, guest_mac=vm.guest_mac, forwards=forwards, accepted=accepted)
    return LaunchPlan(
        vm_id=vm.id,
        paths=host.paths.vm(vm.id),
        boot=image.boot,
        boot_args=vm.spec.boot_args if vm.spec.boot_args is not None else image.boot.boot_args,
        image_digest=image.digest,
        vcpu_count=vm.spec.vcpu_count,
        mem_mib=vm.spec.mem_mib,
        net=net,
        has_seed=True,
        lazy=lazy,
    )
