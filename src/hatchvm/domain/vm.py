"""The VM: what a user asked for, and where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Final

from hatchvm.domain.lifecycle import State

#: `idle_timeout` of a VM that must never be suspended by itself.
NEVER: Final = "never"
MAX_VCPUS: Final = 32
MIN_MEM_MIB: Final = 32
MAX_MEM_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class VMSpec:
    """What the user asked for, defaults filled in. Never changes after creation."""

    image_id: str
    template_id: str | None = None
    name: str | None = None
    vcpu_count: int = 1
    mem_mib: int = 512
    boot_args: str | None = None  # None: the image's own
    enable_network: bool = True
    user_data: str | None = None  # cloud-init; may hold secrets: never logged
    idle_timeout: str | None = None  # None: the node's; a Go duration; or NEVER
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class VM:
    """One guest, as its row has it. `generation` grows with every change and guards every write."""

    id: str
    spec: VMSpec
    state: State
    node_id: str
    created_at: datetime
    updated_at: datetime
    state_reason: str = ""  # why it is in this state, or why the last attempt to leave it failed
    last_active_at: datetime | None = None
    started_at: datetime | None = None  # when the guest last booted from its disk
    guest_ip: str | None = None  # None: networking is off
    guest_mac: str | None = None
    tap_name: str | None = None
    ssh_port: int | None = None
    wake_failures: int = 0  # restores that failed in a row
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVM:
    """A request for a VM, every field optional: what is None comes from the template, else from the node."""

    image_id: str | None = None
    template_id: str | None = None
    name: str | None = None
    vcpu_count: int | None = None
    mem_mib: int | None = None
    boot_args: str | None = None
    enable_network: bool | None = None
    guest_ip: str | None = None
    guest_mac: str | None = None
    user_data: str | None = None
    idle_timeout: str | None = None
    snapshot_id: str | None = None  # start as a copy of this snapshot instead of booting
    metadata: Mapping[str, str] | None = None
