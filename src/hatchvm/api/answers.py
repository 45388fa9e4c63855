"""What clients get: one model per thing, and how it is made from the domain's value.

`user_data` is never sent back: it may hold secrets, and whoever may list VMs need not know them.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, JsonValue

from hatchvm.api.context import Context
from hatchvm.base.clock import rfc3339
from hatchvm.domain.custom_domain import challenge_of
from hatchvm.domain.image import Image, Template
from hatchvm.domain.key import ApiKey
from hatchvm.domain.lifecycle import PUBLIC
from hatchvm.domain.route import Route
from hatchvm.domain.snapshot import Snapshot
from hatchvm.domain.ssh_key import SSHKey
from hatchvm.domain.stored import FATAL, Audit, Collected
from hatchvm.domain.vm import VM
from hatchvm.ports.house import Event, Overview


class Problem(BaseModel):
    """Why a call failed."""

    error: str


class Deleted(BaseModel):
    """The answer to every DELETE."""

    status: Literal["deleted"] = "deleted"


class VMAnswer(BaseModel):
    """A VM. `state` is one of starting, running, stopping, stopped, snapshotted, error."""

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


class DomainChallenge(BaseModel):
    """The DNS record that proves a claim on a domain."""

    name: str
    type: Literal["TXT"] = "TXT"
    value: str


class RouteAnswer(BaseModel):
    """A route. `url` is where the proxy serves it.

    `domain` is served too, once verified; until then `domain_challenge` is the record to make before `…/verify`.
    `domain_missing_since`: when that record was first not found again; the domain is served on only for some days.
    """

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


class Served(BaseModel):
    """The proxy leads requests for this name to a VM."""

    status: Literal["served"] = "served"


class SnapshotAnswer(BaseModel):
    """A snapshot. `vm_config` is JSON in a string; the keys name objects in the object store."""

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


class Verified(BaseModel):
    """All of a snapshot was read and is what was stored. `bytes`: of its blocks and manifest."""

    status: Literal["ok"] = "ok"
    bytes: int


class AmountAnswer(BaseModel):
    """So many objects, so many bytes."""

    objects: int
    bytes: int


class CollectedAnswer(BaseModel):
    """What was removed from the object store. `kept`: packs that are left; `waiting`: those that no snapshot needs."""

    deleted: AmountAnswer
    kept: AmountAnswer
    waiting: AmountAnswer


class StoredKey(BaseModel):
    """What is stored under one encryption key (null: not encrypted); an old one with 0 bytes is needed no more.

    `current`: new data is sealed with it. `held`: it is in the key file.
    """

    key_id: str | None
    bytes: int
    current: bool
    held: bool


class StoreProblem(BaseModel):
    """Something that is wrong in the object store. `message` says what to do about it."""

    kind: Literal["damaged_manifest", "missing_data", "no_manifest", "no_row", "unknown_object"]
    snapshot_id: str | None
    key: str
    message: str


class AuditAnswer(BaseModel):
    """What lies in the object store.

    `shared`: packs that several snapshots need. `trash`: deleted snapshots, and packs that only they need. `orphaned`:
    packs that nothing refers to, `due`: those that the next collection removes. `unknown`: objects that are not ours.
    """

    status: Literal["ok", "damaged"]
    stored_bytes: int
    manifests: AmountAnswer
    packs: AmountAnswer
    shared: AmountAnswer
    trash: AmountAnswer
    orphaned: AmountAnswer
    due: AmountAnswer
    unknown: AmountAnswer
    keys: list[StoredKey]
    problems: list[StoreProblem]


class ImageAnswer(BaseModel):
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


class TemplateAnswer(BaseModel):
    """A template."""

    id: str
    name: str
    defaults: dict[str, JsonValue]
    created_at: str


class KeyAnswer(BaseModel):
    """An API key, without its secret."""

    id: str
    name: str
    created_at: str


class NewKeyAnswer(KeyAnswer):
    """A new API key. `key` is its secret, shown this once."""

    key: str


class SSHKeyAnswer(BaseModel):
    """A user's SSH key, which opens every VM through the daemon's own SSH port."""

    id: str
    name: str
    public_key: str
    fingerprint: str
    created_at: str


class Health(BaseModel):
    """How much this node looks after."""

    status: Literal["ok"] = "ok"
    vm_count: int
    route_count: int


class UploadAnswer(BaseModel):
    """A snapshot that is on this host only, so far. `error`: why the last attempt to store it failed.

    Neither `uploading` nor to be retried: what was to be stored is lost.
    """

    vm_id: str
    snapshot_id: str
    pending_since: str
    error: str
    uploading: bool
    next_retry_at: str | None


class Ready(BaseModel):
    """Whether requests can be served, and how many snapshots are not in the store yet. Anybody may ask."""

    status: Literal["ready", "not ready"]
    store: str
    uploads_pending: int
    oldest_pending_seconds: float


class StatusAnswer(Ready):
    """What the node looks after: VMs by state, snapshots not in the store yet. `reason`: why it is not ready."""

    reason: str
    vms: dict[str, int]
    uploads: list[UploadAnswer]


class EventAnswer(BaseModel):
    """The data of one server-sent event."""

    id: int
    at: str
    type: str
    vm_id: str
    state: str
    reason: str


def ready_answer(overview: Overview, *, ready: bool) -> Ready:
    uploads = overview.uploads
    return Ready(
        status="ready" if ready else "not ready",
        store=overview.store,
        uploads_pending=len(uploads),
        oldest_pending_seconds=round(uploads[0].waited_s, 3) if uploads else 0.0,
    )


def status_answer(overview: Overview, *, reason: str) -> StatusAnswer:
    """`reason`: why the node is not ready; empty if it is."""
    return StatusAnswer(
        **ready_answer(overview, ready=not reason).model_dump(),
        reason=reason,
        vms=dict(overview.vms),
        uploads=[
            UploadAnswer(
                vm_id=one.vm_id,
                snapshot_id=one.snapshot_id,
                pending_since=rfc3339(one.since),
                error=one.error,
                uploading=one.uploading,
                next_retry_at=time_answer(one.retry_at),
            )
            for one in overview.uploads
        ],
    )


def vm_answer(vm: VM, context: Context) -> VMAnswer:
    spec = vm.spec
    return VMAnswer(
        id=vm.id,
        state=PUBLIC[vm.state],
        state_reason=vm.state_reason,
        name=spec.name,
        image_id=spec.image_id,
        template_id=spec.template_id,
        vcpu_count=spec.vcpu_count,
        mem_mib=spec.mem_mib,
        boot_args=spec.boot_args,
        enable_network=spec.enable_network,
        idle_timeout=spec.idle_timeout,
        metadata=dict(spec.metadata),
        guest_ip=vm.guest_ip,
        guest_mac=vm.guest_mac,
        tap_name=vm.tap_name,
        ssh_port=vm.ssh_port,
        socket_path=context.socket_path_for(vm.id),
        node_id=vm.node_id,
        created_at=rfc3339(vm.created_at),
        updated_at=rfc3339(vm.updated_at),
        last_active_at=time_answer(context.house.vms.last_active_at(vm)),
    )


def route_answer(route: Route, context: Context) -> RouteAnswer:
    verified = route.verified_domain is not None
    challenge = None if verified and route.domain_missing_since is None else challenge_of(route)
    return RouteAnswer(
        id=route.id,
        vm_id=route.vm_id,
        subdomain=route.subdomain,
        target_port=route.target_port,
        auto_wake=route.auto_wake,
        url=context.base_url_for(route.subdomain),
        domain=route.domain,
        domain_verified=verified,
        domain_challenge=DomainChallenge(name=challenge.name, value=challenge.value) if challenge else None,
        domain_missing_since=time_answer(route.domain_missing_since),
        created_at=rfc3339(route.created_at),
        updated_at=rfc3339(route.updated_at),
    )


def snapshot_answer(snapshot: Snapshot) -> SnapshotAnswer:
    return SnapshotAnswer(
        id=snapshot.id,
        vm_id=snapshot.vm_id,
        status=snapshot.status,
        state_key=snapshot.state_key,
        memory_key=snapshot.memory_key,
        disk_key=snapshot.disk_key,
        vm_config=snapshot.vm_config,
        size_bytes=snapshot.size_bytes,
        stored_bytes=snapshot.stored_bytes,
        parent_id=snapshot.parent_id,
        created_at=rfc3339(snapshot.created_at),
    )


def collected_answer(done: Collected) -> CollectedAnswer:
    return CollectedAnswer.model_validate(done, from_attributes=True)


def audit_answer(audit: Audit) -> AuditAnswer:
    """`damaged` if there is a snapshot that cannot be restored."""
    damaged = any(problem.kind in FATAL for problem in audit.problems)
    return AuditAnswer.model_validate({"status": "damaged" if damaged else "ok", **asdict(audit)})


def image_answer(image: Image) -> ImageAnswer:
    boot = image.boot
    return ImageAnswer(
        id=image.id,
        name=image.name,
        kernel_path=str(boot.kernel),
        initrd_path=str(boot.initrd) if boot.initrd else None,
        rootfs_path=str(boot.rootfs) if boot.rootfs else None,
        boot_args=boot.boot_args,
        digest=image.digest,
        size_bytes=image.size_bytes,
        builtin=image.builtin,
        created_at=rfc3339(image.created_at),
    )


def template_answer(template: Template) -> TemplateAnswer:
    defaults = {name: value for name, value in template.defaults.items() if name != "user_data"}
    return TemplateAnswer.model_validate(
        {"id": template.id, "name": template.name, "defaults": defaults, "created_at": rfc3339(template.created_at)}
    )


def key_answer(key: ApiKey) -> KeyAnswer:
    return KeyAnswer(id=key.id, name=key.name, created_at=rfc3339(key.created_at))


def ssh_key_answer(key: SSHKey) -> SSHKeyAnswer:
    return SSHKeyAnswer(
        id=key.id,
        name=key.name,
        public_key=key.public_key,
        fingerprint=key.fingerprint,
        created_at=rfc3339(key.created_at),
    )


def event_answer(event: Event) -> EventAnswer:
    return EventAnswer(
        id=event.id,
        at=rfc3339(event.at),
        type=event.type,
        vm_id=event.vm_id,
        state=PUBLIC[event.state],
        reason=event.reason,
    )


def time_answer(moment: datetime | None) -> str | None:
    return rfc3339(moment) if moment else None
