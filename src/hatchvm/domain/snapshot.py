"""Snapshots: immutable records from which a VM resumes exactly where it left off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

#: Of stamps, and of what the files of a saved VM hold. A version that changes either counts on.
FORMAT: Final = 2


class SnapshotStatus(StrEnum):
    """How far a snapshot is."""

    PENDING = "pending"  # complete on this host; not yet committed to the object store
    COMMITTED = "committed"  # its manifest is in the object store
    DELETING = "deleting"  # nobody uses it any more; its manifest may still be there


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


def kept(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """Those that are not being deleted."""
    return [one for one in snapshots if one.status is not SnapshotStatus.DELETING]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What device state depends on: it can only be loaded where all of this is the same.

    Boot arguments are not part of it: the kernel has read them, and no device keeps them. (An image's own are in its
    digest all the same.) An emulated CPU depends on the VMM's build alone and has no flags of its own.
    """

    format: int = FORMAT
    vmm: str  # "QEMU"
    vmm_version: str  # the whole version string of the build
    machine: str  # machine type
    accel: str  # what runs the guest's code: "kvm" or "tcg"
    cpu_model: str  # of the host, if its CPU is passed through; else the emulated one
    cpu_flags: str  # digest of the host's CPU flags, if its CPU is passed through; else empty
    mem_mib: int
    vcpu_count: int
    devices: str  # digest of the exact device list, which changes the layout of the device state
    kernel_digest: str  # BLAKE3 of the kernel's file
    image_digest: str  # see `Image.digest`

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Stamp:
        """A stamp that this host wrote down. What an older version did not record is empty: such a one fits nowhere.

        Raises TypeError for a field of the wrong type.
        """
        known: dict[str, Any] = {}
        for field in fields(cls):
            kind = int if field.type == "int" else str
            known[field.name] = record.get(field.name, kind())
            if type(known[field.name]) is not kind:
                raise TypeError(field.name)
        return cls(**known)

    def difference(self, host: Stamp) -> str | None:
        """Words about the first thing in which `host` differs ("it was made …"), or None if the snapshot fits."""
        for field in fields(self):
            mine, theirs = getattr(self, field.name), getattr(host, field.name)
            if mine != theirs:
                return _DIFFERENCE[field.name].format(mine=mine, theirs=theirs, snapshot=self)
        return None


#: Field of a stamp -> what its difference means.
_DIFFERENCE: Final = MappingProxyType(
    {
        "format": "another version of Hatch saved it (format {mine}, this one reads format {theirs})",
        "vmm": "it was made by {mine}, this host has {theirs}",
        "vmm_version": "it was made by {snapshot.vmm} {mine}, this host has {theirs}",
        "machine": "it was made on a machine of type {mine}, VMs here are of type {theirs}",
        "accel": "it ran under {mine}, VMs here run under {theirs}",
        "cpu_model": "it was made on CPU {mine!r}, this host has {theirs!r}",
        "cpu_flags": "it was made on CPU {snapshot.cpu_model!r} with another set of CPU flags than this host's",
        "mem_mib": "it has {mine} MiB of memory, the VM has {theirs}",
        "vcpu_count": "it has vcpu_count {mine}, the VM has {theirs}",
        "devices": "it was made with other devices than the VM has here",
        "kernel_digest": "it runs another kernel than the VM's image has here",
        "image_digest": "it was made from another image than the VM has here",
    }
)
