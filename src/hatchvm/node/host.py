"""What every sequence of this floor works with, and the launch plan of a VM."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass

from hatchvm.base.errors import Unavailable, Unsupported
from hatchvm.base.paths import DataPaths
from hatchvm.domain.image import Image
from hatchvm.domain.snapshot import Stamp
from hatchvm.domain.vm import VM
from hatchvm.node.lazy import Pagers
from hatchvm.ports.network import Network, Seat
from hatchvm.ports.vmm import Driver, LaunchPlan, Nest, NetPlan
from hatchvm.snapshots.engine import SnapshotEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One host's parts. `boot_id` names this boot of the host; `bridge` is None where there is none."""

    paths: DataPaths
    driver: Driver
    engine: SnapshotEngine | None
    pagers: Pagers
    private: Network
    bridge: Network | None
    boot_id: str

    def snapshots(self) -> SnapshotEngine:
        if self.engine is None:
            raise Unavailable("snapshot storage not configured")
        return self.engine

    def network(self, seat: Seat) -> Network | None:
        """The network of a VM; None if that is a bridge and this daemon was started without."""
        return self.private if seat.tap_name is None else self.bridge

    def needed_network(self, seat: Seat) -> Network:
        network = self.network(seat)
        if network is None:
            raise Unsupported("the VM is on the bridge; start Hatch with HATCH_NETWORK=bridge")
        return network


def seat_of(vm: VM) -> Seat | None:
    """Its place on the network; None if it has no network."""
    if vm.guest_ip is None or vm.guest_mac is None:
        return None
    return Seat(vm_id=vm.id, guest_ip=vm.guest_ip, guest_mac=vm.guest_mac, tap_name=vm.tap_name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plug:
    """A VM's TAP, as its driver wants it."""

    fd: int | None = None
    nest: Nest | None = None


@asynccontextmanager
async def plugged_in(host: Host, vm: VM) -> AsyncIterator[Plug]:
    """The VM's TAP, for a VMM that starts inside the block; if it does not start, nothing of it is left."""
    seat = seat_of(vm)
    if seat is None:
        yield Plug()
    elif host.driver.taps == "name":
        nest = await host.needed_network(seat).nest(seat)
        try:
            yield Plug(nest=nest)
        finally:
            await nest.close()
    else:
        fd = await host.needed_network(seat).attach(seat)
        try:
            yield Plug(fd=fd)
        finally:
            if fd is not None:
                os.close(fd)


async def ensure_fit(host: Host, stamp: Stamp, launch_plan: LaunchPlan, *, instead: str) -> None:
    """Raises Unsupported if memory with this stamp cannot be resumed here; `instead`: what can be done."""
    difference = stamp.difference(await host.driver.stamp(launch_plan, stamp))
    if difference is not None:
        raise Unsupported(f"the saved memory does not fit this host: {difference}; {instead}")


def plan(
    host: Host,
    vm: VM,
    image: Image,
    *,
    ports: Collection[int] = (),
    accepted: frozenset[int] = frozenset(),
    plug: Plug | None = None,
    lazy: bool = False,
    written_by: str | None = None,
) -> LaunchPlan:
    """How to start this VM. `ports`: guest ports that will be dialled, reachable from the start. `plug`: its TAP.

    `lazy`, `written_by`: see `LaunchPlan`.
    """
    net = None
    if vm.guest_ip is not None and vm.guest_mac is not None:
        forwards = dict.fromkeys(ports, 0)
        net = NetPlan(
            guest_ip=vm.guest_ip,
            guest_mac=vm.guest_mac,
            forwards=forwards,
            accepted=accepted,
            tap_name=vm.tap_name,
            tap_fd=plug.fd if plug else None,
            nest=plug.nest if plug else None,
        )
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
        written_by=written_by,
    )
