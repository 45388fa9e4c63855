"""The house port: what a door (the REST API, the dashboard) may ask of the control plane.

Every method raises only `HatchError`s, whose sentences users see. Ids given here have the right shape, not more: the
house answers NotFound for the ones it does not know. Lists are newest first.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from hatchvm.domain.activity import Holding
from hatchvm.domain.image import Builtin, Image, Template
from hatchvm.domain.key import ApiKey
from hatchvm.domain.lease import Lease
from hatchvm.domain.lifecycle import State
from hatchvm.domain.route import Route
from hatchvm.domain.snapshot import Snapshot
from hatchvm.domain.ssh_key import SSHKey
from hatchvm.domain.stored import Audit, Collected
from hatchvm.domain.vm import VM, NewVM
from hatchvm.ports.vmm import PutRight


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a VM. `id` grows by one per event of this daemon's life."""

    id: int
    at: datetime
    type: str
    vm_id: str
    state: State
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingUpload:
    """A snapshot that is on this host only, so far: since when, and how long that is now.

    `error`: why the last attempt to store it failed, if one did. Neither `uploading` nor to be retried: what was to be
    stored is lost, and `error` says how.
    """

    vm_id: str
    snapshot_id: str
    since: datetime
    waited_s: float
    error: str
    uploading: bool
    retry_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What a node looks after. `vms`: public state -> how many. `uploads`: the oldest first."""

    store: str  # "directory", "s3" or "none"
    vms: Mapping[str, int]
    uploads: Sequence[PendingUpload]


@dataclass(frozen=True, slots=True, kw_only=True)
class Woken:
    """A wake that succeeded. `reason`: `http`, `ssh` or `api`; `by`: the address that asked, if it was told."""

    at: datetime
    reason: str
    by: str
    seconds: float
    put_right: PutRight


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Why a VM is awake, why it woke, when it will sleep.

    `holds`: the oldest first, at most 100 of `hold_count`. `sleeps_at`: if nobody comes; None: not by itself, for the
    reason that `awake_because` names. `last_wake`: None if this daemon saw none.
    """

    state: State
    last_active_at: datetime | None
    idle_s: float
    idle_timeout: str
    hold_count: int
    holds: Sequence[Holding]
    last_wake: Woken | None
    sleeps_at: datetime | None
    awake_because: str


class VMs(Protocol):
    """Use cases over VMs. A call returns when the VM is where it was asked to be."""

    async def create(self, new: NewVM) -> VM:
        """A running VM. Raises Invalid, NotFound (image, template, snapshot), Conflict (name), Exhausted."""

    async def list(self) -> Sequence[VM]: ...

    async def get(self, vm_id: str) -> VM: ...

    async def delete(self, vm_id: str) -> None:
        """Remove the VM with its routes and snapshots. What only those needed of the object store goes later."""

    async def stop(self, vm_id: str) -> VM: ...

    async def start(self, vm_id: str) -> VM: ...

    async def snapshot(self, vm_id: str) -> Snapshot:
        """Suspend, and return when the snapshot is committed. Raises Conflict unless the VM is running."""

    async def restore(self, vm_id: str, snapshot_id: str | None, *, disk: bool = False) -> VM:
        """Wake from that snapshot; None: the latest. With `disk`: boot from its disk and forget its memory.

        Raises Unsupported, naming the difference, if the memory cannot be resumed on this host.
        """

    async def snapshots(self, vm_id: str) -> Sequence[Snapshot]:
        """But the ones that are being deleted."""

    def last_active_at(self, vm: VM) -> datetime | None:
        """The newest activity, newer than the row's while the VM is in use."""


class Routes(Protocol):
    """Use cases over routes."""

    async def create(
        self, vm_id: str, *, subdomain: str | None, target_port: int, auto_wake: bool, domain: str | None = None
    ) -> Route:
        """A route; without a subdomain it gets a random one. Raises Conflict if the subdomain is in use.

        A `domain` serves nothing before `verify`: several routes may claim one.
        """

    async def list(self) -> Sequence[Route]: ...

    async def list_for_vm(self, vm_id: str) -> Sequence[Route]:
        """Raises NotFound if there is no such VM."""

    async def update(
        self,
        route_id: str,
        *,
        subdomain: str | None = None,
        target_port: int | None = None,
        auto_wake: bool | None = None,
        domain: str | None = None,
    ) -> Route:
        """Change what is not None. An empty domain takes the route's away; another one must be verified anew."""

    async def verify(self, route_id: str) -> Route:
        """Serve the route's domain if the DNS has the record that proves the claim, see `domain.custom_domain`.

        Raises Conflict if it has not, or another route has that domain already; Unavailable if no name server answers.
        """

    def serves(self, host: str) -> bool:
        """True if requests with this Host header are led to some VM. Looks at memory only."""

    async def delete(self, route_id: str) -> None: ...


class Holds(Protocol):
    """Use cases over what keeps VMs awake. Leases that have ended are none any more."""

    async def create(self, vm_id: str, *, ttl_s: float, reason: str) -> Lease:
        """Keep a running VM from being suspended by itself. Raises Conflict if it has too many leases."""

    async def list(self, vm_id: str) -> Sequence[Lease]: ...

    async def renew(self, vm_id: str, lease_id: str, *, ttl_s: float) -> Lease:
        """Let it last that long from now."""

    async def release(self, vm_id: str, lease_id: str) -> None: ...

    async def use(self, vm_id: str) -> Use: ...


class Snapshots(Protocol):
    """Use cases over snapshots."""

    async def get(self, snapshot_id: str) -> Snapshot: ...

    async def delete(self, snapshot_id: str) -> None: ...

    async def verify(self, snapshot_id: str) -> int:
        """Read all that is stored of it; bytes of its blocks and manifest. Raises Corrupt naming the object."""


class Storage(Protocol):
    """Use cases over the object store."""

    async def collect(self, grace_s: float | None) -> Collected:
        """Remove what no snapshot has needed for that long; None: the configured grace period.

        Raises Conflict for a shorter one while a snapshot is being stored or restored, and Corrupt or Unsupported
        naming a snapshot that is missing or cannot be read: then nothing is removed.
        """

    async def audit(self) -> Audit:
        """What is stored, and what is wrong with it. Reads no data of guests and changes nothing."""


class Images(Protocol):
    """Use cases over images."""

    async def create(
        self,
        *,
        name: str | None,
        kernel_path: str,
        initrd_path: str | None,
        rootfs_path: str | None,
        boot_args: str | None,
    ) -> Image:
        """Register files of this host. Raises Invalid if one cannot be read, Conflict if the name is taken."""

    async def add_builtin(self, name: Builtin) -> Image:
        """Register a built-in image, or the newer build of one. Raises NotFound if the cache does not hold it."""

    async def list(self) -> Sequence[Image]: ...

    async def get(self, id_or_name: str) -> Image: ...

    async def delete(self, id_or_name: str) -> None:
        """Raises Conflict while a VM uses it."""


class Templates(Protocol):
    """Use cases over templates."""

    async def create(self, name: str, defaults: Mapping[str, object]) -> Template: ...

    async def list(self) -> Sequence[Template]: ...

    async def get(self, id_or_name: str) -> Template: ...

    async def delete(self, id_or_name: str) -> None: ...


class Keys(Protocol):
    """Use cases over API keys."""

    async def create(self, name: str) -> tuple[ApiKey, str]:
        """A new key and its secret, which is kept nowhere."""

    async def list(self) -> Sequence[ApiKey]: ...

    async def delete(self, key_id: str) -> None: ...


class SSHKeys(Protocol):
    """Use cases over users' SSH keys."""

    async def create(self, name: str, public_key: str) -> SSHKey:
        """Let whoever holds the key in. Raises Invalid for what is no public key, Conflict for a known one."""

    async def list(self) -> Sequence[SSHKey]: ...

    async def delete(self, key_id: str) -> None: ...


class Events(Protocol):
    """What happens, as it happens."""

    def subscribe(self, vm_id: str | None) -> AsyncGenerator[Event, None]:
        """Events (of one VM) from the first `anext` on, until closed. A reader that is too slow may lose some."""


class House(Protocol):
    """The control plane."""

    @property
    def vms(self) -> VMs: ...

    @property
    def routes(self) -> Routes: ...

    @property
    def holds(self) -> Holds: ...

    @property
    def snapshots(self) -> Snapshots: ...

    @property
    def storage(self) -> Storage: ...

    @property
    def images(self) -> Images: ...

    @property
    def templates(self) -> Templates: ...

    @property
    def keys(self) -> Keys: ...

    @property
    def ssh_keys(self) -> SSHKeys: ...

    @property
    def events(self) -> Events: ...

    async def health(self) -> tuple[int, int]:
        """How many VMs and routes there are."""

    async def overview(self) -> Overview:
        """What this node looks after, told from memory: an object store that is down does not matter."""

    async def ready(self) -> None:
        """Raises Unavailable with what is missing until requests can be served."""
