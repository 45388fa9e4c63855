"""Snapshots: immutable records from which a VM resumes exactly where it left off."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class SnapshotStatus(StrEnum):
    """How far a snapshot is."""

    PENDING = "pending"  # complete on this host; not yet committed to the object store
    COMMITTED = "committed"  # its manifest is in the object store


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One snapshot, as its row has it. The keys name objects in the object store."""

    id: str
    vm_id: str
    status: SnapshotStatus
    state_key: str
    memory_key: str
    disk_key: str
    vm_config: str  # JSON: what a copy of the VM needs
    created_at: datetime
    size_bytes: int = 0  # memory + disk + device state before compression, holes included
    stored_bytes: int = 0  # what the object store really holds for it
    parent_id: str | None = None
    error: str = ""  # why the last upload failed, if it did


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What device state depends on: it can only be loaded where all of this is the same."""

    vmm: str  # "qemu"
    vmm_version: str  # the whole version string of the build
    machine: str  # machine type, accelerator, CPU model
    mem_mib: int
    vcpu_count: int
    devices: str  # digest of the exact device list, which changes the layout of the device state
    image_digest: str

    def difference(self, host: Stamp) -> str | None:
        """A sentence naming the first thing in which `host` differs, or None if the snapshot fits."""
        for name in self.__dataclass_fields__:
            mine, theirs = getattr(self, name), getattr(host, name)
            if mine != theirs:
                return f"the snapshot was made with {name.replace('_', ' ')} {mine!r}, this host has {theirs!r}"
        return None
