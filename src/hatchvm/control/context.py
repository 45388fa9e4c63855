"""What every verb of the control plane works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Interface

from hatchvm.base.clock import Clock
from hatchvm.control.events import Bus
from hatchvm.control.owner import Owner, Owners
from hatchvm.control.table import RouteTable
from hatchvm.domain.image import Image
from hatchvm.domain.vm import VM
from hatchvm.ports.node import Node
from hatchvm.ports.resolver import Resolver
from hatchvm.ports.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The control plane's share of the configuration. Durations in seconds."""

    default_image: str
    default_vcpu: int
    default_mem_mib: int
    default_boot_args: str | None
    ssh_ports: range
    idle_check_s: float
    idle_timeout_s: float
    wake_timeout_s: float
    snapshots_configured: bool
    snapshot_keep: int
    host_mem_mib: int
    base_domains: tuple[str, ...]
    bridge: IPv4Interface | None = None  # guests get addresses there; None: each has a private user network
    snapshot_grace_s: float = 6 * 3600.0
    snapshot_store: str = "directory"  # its kind: see `ports.house.Overview`
    domain_recheck_s: float = 24 * 3600.0  # 0: never
    drain_s: float = 5.0  # how long an explicit snapshot waits for open requests to end
    halt_s: float = 20.0  # how long a guest may take to shut down


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The control plane's parts."""

    store: Store
    node: Node
    clock: Clock
    bus: Bus
    owners: Owners
    routes: RouteTable
    settings: Settings
    resolver: Resolver
    port_is_free: Callable[[int], bool]

    async def image_of(self, vm: VM) -> Image:
        """The image of a VM. It cannot be missing: an image in use is not deleted."""
        async with self.store.begin() as tx:
            return await tx.images.get(vm.spec.image_id)

    def own(self, vm: VM) -> Owner:
        """Become the owner of a VM whose row was just written or read."""
        owner = Owner(vm, self.store, self.bus, self.clock)
        self.owners.add(owner)
        return owner
