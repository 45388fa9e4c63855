"""The store port: rows of VMs, routes, snapshots, leases, images, templates and keys.

One unit of work is `async with store.begin() as tx`: it commits when the block ends well and leaves nothing when it
raises. No network or disk work belongs inside. Reads see a consistent state. Lists are newest first.

`insert` raises Conflict if a unique name is taken. `get` raises NotFound with the sentence users see. `delete` of a
missing row is success.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol, TypeVar

from hatchvm.domain.image import Image, Template
from hatchvm.domain.key import ApiKey
from hatchvm.domain.lease import Lease
from hatchvm.domain.route import Route
from hatchvm.domain.snapshot import Snapshot
from hatchvm.domain.ssh_key import SSHKey
from hatchvm.domain.vm import VM

R = TypeVar("R")


class Rows(Protocol[R]):
    """What every table can do."""

    async def insert(self, row: R) -> None: ...

    async def get(self, row_id: str) -> R: ...

    async def list(self) -> Sequence[R]: ...

    async def delete(self, row_id: str) -> None: ...


class VMRows(Rows[VM], Protocol):
    """VMs. Names and SSH ports are unique among those that have one, addresses among those with a TAP."""

    async def update(self, vm: VM) -> VM:
        """Write `vm` if the row still has `vm.generation`; return it with the next generation.

        Raises StaleGeneration if it does not, NotFound if the row is gone.
        """

    async def touch(self, vm_id: str, last_active_at: datetime) -> None:
        """Record activity without a new generation; a missing row is ignored, an older time too."""

    async def used_ssh_ports(self) -> set[int]: ...

    async def used_addresses(self) -> set[str]:
        """Guest addresses of the VMs that have a TAP, asleep or not."""

    async def count_by_image(self, image_id: str) -> int: ...


class RouteRows(Rows[Route], Protocol):
    """Routes. Subdomains are unique, domains among the verified ones: Conflict `subdomain "x" is already in use`."""

    async def update(self, route: Route) -> None: ...

    async def list_for_vm(self, vm_id: str) -> Sequence[Route]: ...


class SnapshotRows(Rows[Snapshot], Protocol):
    """Snapshots."""

    async def update(self, snapshot: Snapshot) -> None: ...

    async def list_for_vm(self, vm_id: str) -> Sequence[Snapshot]: ...

    async def newest_of_image(self, image_id: str, *, limit: int) -> Sequence[Snapshot]:
        """The newest committed snapshot of every VM of that image, at most `limit` of them."""


class ImageRows(Rows[Image], Protocol):
    """Images. Names are unique among those that have one."""

    async def find(self, id_or_name: str) -> Image:
        """By id or by name. Raises NotFound."""

    async def update(self, image: Image) -> None:
        """Give it another name, or none: nothing else of an image changes. Raises Conflict if the name is taken."""


class TemplateRows(Rows[Template], Protocol):
    """Templates. Names are unique."""

    async def find(self, id_or_name: str) -> Template:
        """By id or by name. Raises NotFound."""


class KeyRows(Rows[ApiKey], Protocol):
    """API keys."""

    async def find_digest(self, digest: str) -> ApiKey | None: ...


class LeaseRows(Rows[Lease], Protocol):
    """Leases, ended ones too until somebody deletes them."""

    async def update(self, lease: Lease) -> None: ...

    async def list_for_vm(self, vm_id: str) -> Sequence[Lease]: ...


class SSHKeyRows(Rows[SSHKey], Protocol):
    """Users' SSH keys. Fingerprints are unique."""

    async def find_fingerprint(self, fingerprint: str) -> SSHKey | None: ...


class Tx(Protocol):
    """One unit of work."""

    vms: VMRows
    routes: RouteRows
    snapshots: SnapshotRows
    images: ImageRows
    templates: TemplateRows
    keys: KeyRows
    leases: LeaseRows
    ssh_keys: SSHKeyRows


class Store(Protocol):
    """Deleting a VM's row deletes its routes, snapshots and leases too."""

    async def open(self) -> None:
        """Connect and bring the schema up to date. Raises Unavailable, or Unsupported for a newer schema."""

    def begin(self) -> AbstractAsyncContextManager[Tx]: ...

    async def close(self) -> None: ...
