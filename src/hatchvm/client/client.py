"""A client for the REST API: one method per call.

    with Client("http://127.0.0.1:8080", key) as client:
        vm = client.create_vm(name="web")
        print(client.create_route(vm["id"], target_port=8080)["url"])

Every method raises `ApiError` when the daemon refuses and `base.errors.Unavailable` when there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Literal, Self, Unpack, cast

from hatchvm.base.ids import VM as VM_PREFIX
from hatchvm.base.ids import is_id
from hatchvm.client.answers import (
    VM,
    Activity,
    Collected,
    Event,
    Health,
    Hold,
    Image,
    Key,
    NewImage,
    NewKey,
    NewVM,
    Route,
    RouteChanges,
    Snapshot,
    SSHKey,
    Status,
    StoreAudit,
    Template,
    Verified,
    VMDefaults,
)
from hatchvm.client.errors import ApiError
from hatchvm.client.transport import Transport, data_of


class Client:
    """One daemon, spoken to synchronously. Not to be shared between threads."""

    def __init__(self, base_url: str, key: str | None = None) -> None:
        """`key` may be None for `health`. Raises Invalid for a URL or key that cannot be used."""
        self._transport = Transport(base_url, key)
        self._call = self._transport.call

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._transport.close()

    def health(self) -> Health:
        return cast(Health, self._call("GET", "healthz"))

    def status(self) -> Status:
        """Whether the node is ready, VMs by state, and snapshots that are not stored yet."""
        return cast(Status, self._call("GET", "status"))

    def create_vm(self, **fields: Unpack[NewVM]) -> VM:
        """Returns when the VM runs."""
        return cast(VM, self._call("POST", "vms", body=fields))

    def list_vms(self) -> list[VM]:
        return cast(list[VM], self._call("GET", "vms"))

    def find_vm(self, id_or_name: str) -> str:
        """The id of the VM that is called so; what has the shape of an id is one."""
        if is_id(id_or_name, VM_PREFIX):
            return id_or_name
        named = [vm["id"] for vm in self.list_vms() if vm["name"] == id_or_name]
        return named[0] if named else id_or_name

    def get_vm(self, vm_id: str) -> VM:
        return cast(VM, self._call("GET", "vms", vm_id))

    def delete_vm(self, vm_id: str) -> None:
        self._call("DELETE", "vms", vm_id)

    def stop_vm(self, vm_id: str) -> VM:
        return cast(VM, self._call("POST", "vms", vm_id, "stop"))

    def start_vm(self, vm_id: str) -> VM:
        return cast(VM, self._call("POST", "vms", vm_id, "start"))

    def snapshot_vm(self, vm_id: str) -> Snapshot:
        """Returns when the snapshot is committed."""
        return cast(Snapshot, self._call("POST", "vms", vm_id, "snapshot"))

    def restore_vm(
        self, vm_id: str, snapshot_id: str | None = None, *, mode: Literal["memory", "disk"] = "memory"
    ) -> VM:
        """Returns when the VM runs. None: its latest snapshot. `disk`: boot from its disk, forget its memory."""
        body = {"mode": mode} if snapshot_id is None else {"mode": mode, "snapshot_id": snapshot_id}
        return cast(VM, self._call("POST", "vms", vm_id, "restore", body=body))

    def list_snapshots(self, vm_id: str) -> list[Snapshot]:
        return cast(list[Snapshot], self._call("GET", "vms", vm_id, "snapshots"))

    def get_snapshot(self, snapshot_id: str) -> Snapshot:
        return cast(Snapshot, self._call("GET", "snapshots", snapshot_id))

    def delete_snapshot(self, snapshot_id: str) -> None:
        self._call("DELETE", "snapshots", snapshot_id)

    def verify_snapshot(self, snapshot_id: str) -> Verified:
        """Let the daemon read all of it. Takes as long as there is much of it, and so has no time limit."""
        try:
            return cast(Verified, self._call("POST", "snapshots", snapshot_id, "verify", patient=True))
        except ApiError as error:
            if error.answer.get("status") != "damaged":
                raise
            return cast(Verified, error.answer)

    def collect(self, grace: str | None = None) -> Collected:
        """Remove from the object store what no snapshot has needed for that long, e.g. `1h`; None: as configured."""
        body = {} if grace is None else {"grace": grace}
        return cast(Collected, self._call("POST", "store", "gc", body=body, patient=True))

    def audit(self) -> StoreAudit:
        return cast(StoreAudit, self._call("GET", "store", "audit", patient=True))

    def create_hold(self, vm_id: str, ttl: str, reason: str = "") -> Hold:
        """Keep a running VM awake that long, e.g. `30m`."""
        body = {"ttl": ttl, "reason": reason} if reason else {"ttl": ttl}
        return cast(Hold, self._call("POST", "vms", vm_id, "holds", body=body))

    def list_holds(self, vm_id: str) -> list[Hold]:
        return cast(list[Hold], self._call("GET", "vms", vm_id, "holds"))

    def renew_hold(self, vm_id: str, hold_id: str, ttl: str) -> Hold:
        """Let it last that long from now."""
        return cast(Hold, self._call("PATCH", "vms", vm_id, "holds", hold_id, body={"ttl": ttl}))

    def release_hold(self, vm_id: str, hold_id: str) -> None:
        self._call("DELETE", "vms", vm_id, "holds", hold_id)

    def get_activity(self, vm_id: str) -> Activity:
        """Why a VM is awake, why it woke, when it will sleep."""
        return cast(Activity, self._call("GET", "vms", vm_id, "activity"))

    def create_route(
        self,
        vm_id: str,
        *,
        target_port: int,
        subdomain: str | None = None,
        auto_wake: bool = True,
        domain: str | None = None,
    ) -> Route:
        """None: a random subdomain, no custom domain. A custom domain serves nothing before `verify_route`."""
        body: dict[str, object] = {"target_port": target_port, "auto_wake": auto_wake}
        body |= {name: text for name, text in (("subdomain", subdomain), ("domain", domain)) if text is not None}
        return cast(Route, self._call("POST", "vms", vm_id, "routes", body=body))

    def list_routes(self, vm_id: str | None = None) -> list[Route]:
        """None: of every VM."""
        path = ("routes",) if vm_id is None else ("vms", vm_id, "routes")
        return cast(list[Route], self._call("GET", *path))

    def update_route(self, route_id: str, **changes: Unpack[RouteChanges]) -> Route:
        return cast(Route, self._call("PATCH", "routes", route_id, body=changes))

    def verify_route(self, route_id: str) -> Route:
        """Serve its domain if the DNS has the record that `domain_challenge` names."""
        return cast(Route, self._call("POST", "routes", route_id, "verify"))

    def delete_route(self, route_id: str) -> None:
        self._call("DELETE", "routes", route_id)

    def create_image(self, kernel_path: str, **fields: Unpack[NewImage]) -> Image:
        """The paths are those of the daemon's host."""
        return cast(Image, self._call("POST", "images", body={"kernel_path": kernel_path, **fields}))

    def add_builtin_image(self, name: str) -> Image:
        """Register what `hatchvm image build` has put into the daemon's cache."""
        return cast(Image, self._call("POST", "images", "builtin", body={"name": name}))

    def list_images(self) -> list[Image]:
        return cast(list[Image], self._call("GET", "images"))

    def get_image(self, id_or_name: str) -> Image:
        return cast(Image, self._call("GET", "images", id_or_name))

    def delete_image(self, id_or_name: str) -> None:
        self._call("DELETE", "images", id_or_name)

    def create_template(self, name: str, defaults: VMDefaults) -> Template:
        return cast(Template, self._call("POST", "templates", body={"name": name, "defaults": defaults}))

    def list_templates(self) -> list[Template]:
        return cast(list[Template], self._call("GET", "templates"))

    def get_template(self, id_or_name: str) -> Template:
        return cast(Template, self._call("GET", "templates", id_or_name))

    def delete_template(self, id_or_name: str) -> None:
        self._call("DELETE", "templates", id_or_name)

    def create_key(self, name: str) -> NewKey:
        return cast(NewKey, self._call("POST", "keys", body={"name": name}))

    def list_keys(self) -> list[Key]:
        return cast(list[Key], self._call("GET", "keys"))

    def delete_key(self, key_id: str) -> None:
        self._call("DELETE", "keys", key_id)

    def create_ssh_key(self, name: str, public_key: str) -> SSHKey:
        """`public_key`: the line of a file that ends in `.pub`."""
        return cast(SSHKey, self._call("POST", "ssh-keys", body={"name": name, "public_key": public_key}))

    def list_ssh_keys(self) -> list[SSHKey]:
        return cast(list[SSHKey], self._call("GET", "ssh-keys"))

    def delete_ssh_key(self, ssh_key_id: str) -> None:
        self._call("DELETE", "ssh-keys", ssh_key_id)

    @contextmanager
    def events(self, vm_id: str | None = None) -> Iterator[Iterator[Event]]:
        """State changes of one VM or (None) of all, from the start of the `with` block until the daemon stops."""
        params = {} if vm_id is None else {"vm": vm_id}
        with self._transport.lines("events", params=params) as lines:
            # The daemon's first line says that it listens: no later change is missed.
            next(lines, None)
            yield data_of(lines)
