"""A house in memory for tests of the doors: it keeps the lifecycle's rules and starts nothing."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeVar

from hatchvm.base import ids
from hatchvm.base.errors import Conflict, Corrupt, NotFound
from hatchvm.base.units import MIB
from hatchvm.domain import key as keys
from hatchvm.domain import lifecycle
from hatchvm.domain.image import TINY, Boot, Builtin, Image, Template
from hatchvm.domain.key import ApiKey
from hatchvm.domain.lease import Lease
from hatchvm.domain.lifecycle import State
from hatchvm.domain.public_key import parse
from hatchvm.domain.route import Route
from hatchvm.domain.snapshot import Snapshot, SnapshotStatus
from hatchvm.domain.ssh_key import SSHKey
from hatchvm.domain.stored import Amount, Audit, Collected, Problem, Sealed
from hatchvm.domain.vm import VM, NewVM, VMSpec
from hatchvm.ports.house import Event, Overview, PendingUpload, Use
from hatchvm.testing.edge.routes import FakeRoutes

START: Final = datetime(2026, 3, 6, 14, 30, tzinfo=UTC)
_OWN: Final = ("guest_ip", "guest_mac", "snapshot_id")


class _Row(Protocol):
    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=_Row)


class _Table(dict[str, R]):
    """Rows by id, and the sentence for the missing one."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word

    def find(self, row_id: str) -> R:
        if row_id not in self:
            raise NotFound(f"{self.word} not found")
        return self[row_id]

    def find_named(self, id_or_name: str) -> R:
        named = [row for row in self.values() if getattr(row, "name", None) == id_or_name]
        return named[0] if named else self.find(id_or_name)

    def newest_first(self) -> list[R]:
        return list(reversed(self.values()))

    def put(self, row: R) -> R:
        self[row.id] = row
        return row


class FakeHouse:
    """Everything in dictionaries. `trouble`, if set, is raised by every call that would change or read something."""

    def __init__(self) -> None:
        self.trouble: Exception | None = None
        self.ticks = 0
        self.vm_rows: _Table[VM] = _Table("vm")
        self.route_rows: _Table[Route] = _Table("route")
        self.lease_rows: _Table[Lease] = _Table("hold")
        self.snapshot_rows: _Table[Snapshot] = _Table("snapshot")
        self.image_rows: _Table[Image] = _Table("image")
        self.template_rows: _Table[Template] = _Table("template")
        self.key_rows: _Table[ApiKey] = _Table("key")
        self.ssh_key_rows: _Table[SSHKey] = _Table("ssh key")
        self.user_data: dict[str, str | None] = {}
        self.disk_restores: list[str] = []
        self.damaged: set[str] = set()
        self.uploads: list[PendingUpload] = []
        self.vms = FakeVMs(self)
        self.routes = FakeRoutes(self)
        self.holds = FakeHolds(self)
        self.snapshots = FakeSnapshots(self)
        self.storage = FakeStorage(self)
        self.images = FakeImages(self)
        self.templates = FakeTemplates(self)
        self.keys = FakeKeys(self)
        self.ssh_keys = FakeSSHKeys(self)
        self.events = FakeEvents()
        self._tiny()

    def now(self) -> datetime:
        """A new second with every look, so that order shows; raises the trouble that a test asked for."""
        if self.trouble is not None:
            raise self.trouble
        self.ticks += 1
        return START + timedelta(seconds=self.ticks)

    async def health(self) -> tuple[int, int]:
        self.now()
        return len(self.vm_rows), len(self.route_rows)

    async def overview(self) -> Overview:
        states = Counter(lifecycle.PUBLIC[vm.state] for vm in self.vm_rows.values())
        return Overview(store="directory", vms=states, uploads=self.uploads)

    async def ready(self) -> None:
        self.now()

    def _tiny(self) -> None:
        boot = Boot(
            kernel=Path("/images/tiny/kernel"), initrd=None, rootfs=None, rootfs_format="raw", boot_args="console=ttyS0"
        )
        tiny_id, size = ids.new(ids.IMAGE), 8_000_000
        self.image_rows.put(
            Image(id=tiny_id, name=TINY, boot=boot, digest="00" * 32, size_bytes=size, created_at=START, builtin=True)
        )


class FakeVMs:
    def __init__(self, house: FakeHouse) -> None:
        self._house = house

    async def create(self, new: NewVM) -> VM:
        house, now = self._house, self._house.now()
        image = house.image_rows.find_named(new.image_id or TINY)
        fields: dict[str, Any] = {}
        if new.template_id is not None:
            fields |= house.template_rows.find_named(new.template_id).defaults
        if new.snapshot_id is not None:
            house.snapshot_rows.find(new.snapshot_id)
        asked = {name: getattr(new, name) for name in NewVM.__dataclass_fields__ if name not in _OWN}
        fields |= {name: value for name, value in asked.items() if value is not None}
        spec = VMSpec(**(fields | {"image_id": image.id}))
        if spec.name and any(vm.spec.name == spec.name for vm in house.vm_rows.values()):
            raise Conflict(f'name "{spec.name}" is already in use')
        vm_id = ids.new(ids.VM)
        house.user_data[vm_id] = spec.user_data
        return house.vm_rows.put(
            VM(
                id=vm_id,
                spec=spec,
                state=State.RUNNING,
                node_id="node-1",
                created_at=now,
                updated_at=now,
                guest_ip=new.guest_ip or "10.0.2.15",
                guest_mac=new.guest_mac or "06:00:0a:00:02:0f",
                ssh_port=16000 + len(house.vm_rows),
            )
        )

    async def list(self) -> Sequence[VM]:
        self._house.now()
        return self._house.vm_rows.newest_first()

    async def get(self, vm_id: str) -> VM:
        self._house.now()
        return self._house.vm_rows.find(vm_id)

    async def delete(self, vm_id: str) -> None:
        house = self._house
        house.now()
        del house.vm_rows[house.vm_rows.find(vm_id).id]
        for rows in (house.route_rows, house.snapshot_rows):
            for row in [row for row in rows.values() if row.vm_id == vm_id]:
                del rows[row.id]

    async def stop(self, vm_id: str) -> VM:
        return self._move(vm_id, lifecycle.Event.STOP, lifecycle.Event.HALTED)

    async def start(self, vm_id: str) -> VM:
        return self._move(vm_id, lifecycle.Event.START, lifecycle.Event.BOOTED)

    async def snapshot(self, vm_id: str) -> Snapshot:
        vm = self._move(vm_id, lifecycle.Event.SUSPEND, lifecycle.Event.SUSPENDED)
        snapshot_id = ids.new(ids.SNAPSHOT)
        return self._house.snapshot_rows.put(
            Snapshot(
                id=snapshot_id,
                vm_id=vm.id,
                status=SnapshotStatus.COMMITTED,
                state_key=f"snapshots/{vm.id}/{snapshot_id}/state",
                memory_key=f"snapshots/{vm.id}/{snapshot_id}/memory",
                disk_key=f"snapshots/{vm.id}/{snapshot_id}/disk",
                vm_config="{}",
                created_at=vm.updated_at,
                size_bytes=vm.spec.mem_mib << 20,
                stored_bytes=1 << 20,
            )
        )

    async def restore(self, vm_id: str, snapshot_id: str | None, *, disk: bool = False) -> VM:
        if snapshot_id is not None and self._house.snapshot_rows.find(snapshot_id).vm_id != vm_id:
            raise NotFound("snapshot not found")
        vm = self._move(vm_id, lifecycle.Event.RESTORE, lifecycle.Event.RESTORED)
        if disk:
            self._house.disk_restores.append(vm_id)
        return vm

    async def snapshots(self, vm_id: str) -> Sequence[Snapshot]:
        vm = await self.get(vm_id)
        return [snapshot for snapshot in self._house.snapshot_rows.newest_first() if snapshot.vm_id == vm.id]

    def last_active_at(self, vm: VM) -> datetime | None:
        return vm.last_active_at

    def _move(self, vm_id: str, *events: lifecycle.Event) -> VM:
        house, now = self._house, self._house.now()
        vm = house.vm_rows.find(vm_id)
        state = vm.state
        for event in events:
            state = lifecycle.advance(state, event)
        vm = house.vm_rows.put(replace(vm, state=state, updated_at=now))
        house.events.publish(vm_id=vm_id, state=state, at=now)
        return vm


class FakeHolds:
    """`uses` is what is told about each VM."""

    def __init__(self, house: FakeHouse) -> None:
        self._house, self._rows = house, house.lease_rows
        self.uses: dict[str, Use] = {}

    async def create(self, vm_id: str, *, ttl_s: float, reason: str) -> Lease:
        lease_id, now = ids.new(ids.LEASE), self._house.now()
        ends = now + timedelta(seconds=ttl_s)
        vm_id = self._house.vm_rows.find(vm_id).id
        return self._rows.put(Lease(id=lease_id, vm_id=vm_id, reason=reason, created_at=now, expires_at=ends))

    async def list(self, vm_id: str) -> Sequence[Lease]:
        vm = await self._house.vms.get(vm_id)
        return [lease for lease in self._rows.newest_first() if lease.vm_id == vm.id]

    async def renew(self, vm_id: str, lease_id: str, *, ttl_s: float) -> Lease:
        now, lease = self._house.now(), self._rows.find(lease_id)
        return self._rows.put(replace(lease, expires_at=now + timedelta(seconds=ttl_s)))

    async def release(self, vm_id: str, lease_id: str) -> None:
        self._house.now()
        del self._rows[self._rows.find(lease_id).id]

    async def use(self, vm_id: str) -> Use:
        return self.uses[(await self._house.vms.get(vm_id)).id]


class FakeSnapshots:
    def __init__(self, house: FakeHouse) -> None:
        self._house = house

    async def get(self, snapshot_id: str) -> Snapshot:
        self._house.now()
        return self._house.snapshot_rows.find(snapshot_id)

    async def delete(self, snapshot_id: str) -> None:
        del self._house.snapshot_rows[(await self.get(snapshot_id)).id]

    async def verify(self, snapshot_id: str) -> int:
        snapshot = await self.get(snapshot_id)
        if snapshot.id in self._house.damaged:
            raise Corrupt(f"the snapshot is damaged: packs/0/{snapshot.id} is missing")
        return snapshot.stored_bytes


class FakeStorage:
    """Remembers the grace periods that were asked for."""

    def __init__(self, house: FakeHouse) -> None:
        self._house = house
        self.graces: list[float | None] = []
        self.problems: list[Problem] = []

    async def collect(self, grace_s: float | None) -> Collected:
        self._house.now()
        self.graces.append(grace_s)
        return Collected(deleted=Amount(2, 3 * MIB), kept=Amount(5, 9 * MIB), waiting=Amount(1, MIB))

    async def audit(self) -> Audit:
        self._house.now()
        return Audit(
            manifests=Amount(1, 1000),
            packs=Amount(3, 3 * MIB),
            shared=Amount(1, MIB),
            trash=Amount(),
            orphaned=Amount(2, 2 * MIB),
            due=Amount(1, MIB),
            unknown=Amount(),
            stored_bytes=3 * MIB + 1000,
            keys=[Sealed(key_id=None, bytes=3 * MIB, current=True, held=True)],
            problems=self.problems,
        )


class FakeImages:
    """Only `tiny` has been built."""

    def __init__(self, house: FakeHouse) -> None:
        self._house = house

    async def add_builtin(self, name: Builtin) -> Image:
        if name != TINY:
            raise NotFound(f'the image "{name}" is not in the cache')
        return await self.get(name)

    async def create(
        self,
        *,
        name: str | None,
        kernel_path: str,
        initrd_path: str | None,
        rootfs_path: str | None,
        boot_args: str | None,
    ) -> Image:
        boot = Boot(
            kernel=Path(kernel_path),
            initrd=Path(initrd_path) if initrd_path else None,
            rootfs=Path(rootfs_path) if rootfs_path else None,
            rootfs_format="raw",
            boot_args=boot_args or "",
        )
        now = self._house.now()
        image = Image(id=ids.new(ids.IMAGE), name=name, boot=boot, digest="11" * 32, size_bytes=1, created_at=now)
        return self._house.image_rows.put(image)

    async def list(self) -> Sequence[Image]:
        self._house.now()
        return self._house.image_rows.newest_first()

    async def get(self, id_or_name: str) -> Image:
        self._house.now()
        return self._house.image_rows.find_named(id_or_name)

    async def delete(self, id_or_name: str) -> None:
        image = await self.get(id_or_name)
        if any(vm.spec.image_id == image.id for vm in self._house.vm_rows.values()):
            raise Conflict("image is in use")
        del self._house.image_rows[image.id]


class FakeTemplates:
    def __init__(self, house: FakeHouse) -> None:
        self._house = house

    async def create(self, name: str, defaults: Mapping[str, object]) -> Template:
        template = Template(
            id=ids.new(ids.TEMPLATE), name=name, defaults=MappingProxyType(dict(defaults)), created_at=self._house.now()
        )
        return self._house.template_rows.put(template)

    async def list(self) -> Sequence[Template]:
        self._house.now()
        return self._house.template_rows.newest_first()

    async def get(self, id_or_name: str) -> Template:
        self._house.now()
        return self._house.template_rows.find_named(id_or_name)

    async def delete(self, id_or_name: str) -> None:
        del self._house.template_rows[(await self.get(id_or_name)).id]


class FakeKeys:
    def __init__(self, house: FakeHouse) -> None:
        self._house = house

    async def create(self, name: str) -> tuple[ApiKey, str]:
        secret = keys.new_secret()
        row = ApiKey(id=ids.new(ids.KEY), name=name, digest=keys.digest_of(secret), created_at=self._house.now())
        return self._house.key_rows.put(row), secret

    async def list(self) -> Sequence[ApiKey]:
        self._house.now()
        return self._house.key_rows.newest_first()

    async def delete(self, key_id: str) -> None:
        self._house.now()
        del self._house.key_rows[self._house.key_rows.find(key_id).id]

    async def verify(self, secret: str) -> bool:
        """A verifier over the same keys."""
        digest = keys.digest_of(secret)
        return any(row.digest == digest for row in self._house.key_rows.values())


class FakeSSHKeys:
    def __init__(self, house: FakeHouse) -> None:
        self._house = house

    async def create(self, name: str, public_key: str) -> SSHKey:
        now, parsed, rows = self._house.now(), parse(public_key), self._house.ssh_key_rows
        if any(row.fingerprint == parsed.fingerprint for row in rows.values()):
            raise Conflict("this SSH key is already in use")
        key_id = ids.new(ids.SSH_KEY)
        key = SSHKey(id=key_id, name=name, public_key=parsed.line, fingerprint=parsed.fingerprint, created_at=now)
        return rows.put(key)

    async def list(self) -> Sequence[SSHKey]:
        self._house.now()
        return self._house.ssh_key_rows.newest_first()

    async def delete(self, key_id: str) -> None:
        self._house.now()
        del self._house.ssh_key_rows[self._house.ssh_key_rows.find(key_id).id]


class FakeEvents:
    """A queue per subscriber. `subscribed` is set (for any thread to see) by each, `ended` when one has ended."""

    def __init__(self) -> None:
        self.queues: list[asyncio.Queue[Event]] = []
        self.subscribed = threading.Event()
        self.ended = asyncio.Event()
        self._last_id = 0

    async def subscribe(self, vm_id: str | None) -> AsyncGenerator[Event, None]:
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self.queues.append(queue)
        self.subscribed.set()
        try:
            while True:
                event = await queue.get()
                if vm_id in (None, event.vm_id):
                    yield event
        finally:
            self.queues.remove(queue)
            self.ended.set()

    def publish(self, *, vm_id: str, state: State, at: datetime) -> None:
        self._last_id += 1
        event = Event(id=self._last_id, at=at, type="vm.state", vm_id=vm_id, state=state)
        for queue in self.queues:
            queue.put_nowait(event)
