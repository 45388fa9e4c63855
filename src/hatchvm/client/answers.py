"""What the daemon answers, as it comes: typed dictionaries."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class VM(TypedDict):
    """A VM. Times are UTC, e.g. `2026-03-06T14:30:00Z`."""

    id: str
    state: str
    state_reason: str
    name: str | None
    image_id: str
    template_id: str | None
    vcpu_count: int
    mem_mib: int
    boot_args: str | None
    enable_network: bool
    idle_timeout: str | None
    metadata: dict[str, str]
    guest_ip: str | None
    guest_mac: str | None
    tap_name: str | None
    ssh_port: int | None
    socket_path: str
    node_id: str
    created_at: str
    updated_at: str
    last_active_at: str | None


class VMDefaults(TypedDict, total=False):
    """The fields of a new VM that a template can hold."""

    image_id: str
    vcpu_count: int
    mem_mib: int
    boot_args: str
    enable_network: bool
    user_data: str
    idle_timeout: str
    metadata: dict[str, str]


class NewVM(VMDefaults, total=False):
    """A request for a VM: whatever is left out comes from the template, else from the node."""

    template_id: str
    name: str
    guest_ip: str
    guest_mac: str
    snapshot_id: str


class DomainChallenge(TypedDict):
    """The DNS record that proves a claim on a domain."""

    name: str
    type: str
    value: str


class Route(TypedDict):
    """A route. `domain_challenge`: while its domain is not verified; `domain_missing_since`: see the API."""

    id: str
    vm_id: str
    subdomain: str
    target_port: int
    auto_wake: bool
    url: str
    domain: str | None
    domain_verified: bool
    domain_challenge: DomainChallenge | None
    domain_missing_since: str | None
    created_at: str
    updated_at: str


class RouteChanges(TypedDict, total=False):
    """What to change of a route. A domain of None takes the route's away."""

    subdomain: str
    target_port: int
    auto_wake: bool
    domain: str | None


class Hold(TypedDict):
    """A lease: it keeps its VM awake until `expires_at`."""

    id: str
    vm_id: str
    reason: str
    created_at: str
    expires_at: str


class Holding(TypedDict):
    """One reason why a VM is awake: `kind` is `http`, `ssh` or `lease`."""

    kind: str
    since: str | None
    last_byte_at: str | None
    peer: str
    reason: str
    ends_at: str | None
    id: str | None


class PutRight(TypedDict):
    """What was put right in a guest after its wake; `undone`: what was not, and why."""

    done: list[str]
    undone: dict[str, str]


class Woken(TypedDict):
    """A wake: `reason` is `http`, `ssh` or `api`."""

    at: str
    reason: str
    by: str
    seconds: float
    put_right: PutRight


class Sleeps(TypedDict):
    """When a VM will sleep if nobody comes, or why it will not."""

    at: str | None
    because: str | None


class Activity(TypedDict):
    """Why a VM is awake, why it woke, when it will sleep."""

    state: str
    last_active_at: str | None
    idle_seconds: float
    idle_timeout: str
    hold_count: int
    holds: list[Holding]
    last_wake: Woken | None
    sleeps: Sleeps


class Snapshot(TypedDict):
    """A snapshot."""

    id: str
    vm_id: str
    status: str
    state_key: str
    memory_key: str
    disk_key: str
    vm_config: str
    size_bytes: int
    stored_bytes: int
    parent_id: str | None
    created_at: str


class Verified(TypedDict):
    """`status` is `ok`, or `damaged` with an `error`."""

    status: str
    bytes: NotRequired[int]
    error: NotRequired[str]


class Amount(TypedDict):
    """So many objects, so many bytes."""

    objects: int
    bytes: int


class Collected(TypedDict):
    """What was removed from the object store, what is left, and what of that no snapshot needs."""

    deleted: Amount
    kept: Amount
    waiting: Amount


class StoredKey(TypedDict):
    """What is stored under one encryption key; None: not encrypted."""

    key_id: str | None
    bytes: int
    current: bool
    held: bool


class StoreProblem(TypedDict):
    """Something that is wrong in the object store."""

    kind: str
    snapshot_id: str | None
    key: str
    message: str


class StoreAudit(TypedDict):
    """What lies in the object store. `status` is `ok`, or `damaged` if a snapshot cannot be restored."""

    status: str
    stored_bytes: int
    manifests: Amount
    packs: Amount
    shared: Amount
    trash: Amount
    orphaned: Amount
    due: Amount
    unknown: Amount
    keys: list[StoredKey]
    problems: list[StoreProblem]


class Image(TypedDict):
    """An image."""

    id: str
    name: str | None
    kernel_path: str
    initrd_path: str | None
    rootfs_path: str | None
    boot_args: str
    digest: str
    size_bytes: int
    builtin: bool
    created_at: str


class NewImage(TypedDict, total=False):
    """What may be said about an image besides its kernel."""

    name: str
    initrd_path: str
    rootfs_path: str
    boot_args: str


class Template(TypedDict):
    """A template, without its `user_data`."""

    id: str
    name: str
    defaults: VMDefaults
    created_at: str


class Key(TypedDict):
    """An API key, without its secret."""

    id: str
    name: str
    created_at: str


class NewKey(Key):
    """A new API key: `key` is its secret, told this once."""

    key: str


class SSHKey(TypedDict):
    """A user's SSH key."""

    id: str
    name: str
    public_key: str
    fingerprint: str
    created_at: str


class Health(TypedDict):
    """How much the node looks after."""

    status: str
    vm_count: int
    route_count: int


class PendingUpload(TypedDict):
    """A snapshot that is on the daemon's host only, so far."""

    vm_id: str
    snapshot_id: str
    pending_since: str
    error: str
    uploading: bool
    next_retry_at: str | None


class Status(TypedDict):
    """What the node looks after. `status` is `ready`, or `not ready` with a `reason`."""

    status: str
    reason: str
    store: str
    vms: dict[str, int]
    uploads_pending: int
    oldest_pending_seconds: float
    uploads: list[PendingUpload]


class Event(TypedDict):
    """A state change."""

    id: int
    at: str
    type: str
    vm_id: str
    state: str
    reason: str
