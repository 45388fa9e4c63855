"""From a request for a VM to its specification: template and node fill in what the request leaves open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from hatchvm.base.errors import Exhausted, Invalid
from hatchvm.domain.image import Image, Template
from hatchvm.domain.vm import MAX_MEM_MIB, MAX_VCPUS, MIN_MEM_MIB, NewVM, VMSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What the node gives a VM that neither the request nor its template says anything about."""

    image: str
    vcpu_count: int
    mem_mib: int
    boot_args: str | None


def with_template(new: NewVM, template: Template | None) -> NewVM:
    """The request with the template's values wherever it has none of its own."""
    if template is None:
        return new
    known = {field.name for field in fields(NewVM)} - {"template_id", "snapshot_id"}
    filled: dict[str, Any] = {name: value for name, value in template.defaults.items() if name in known}
    return replace(new, **{name: value for name, value in filled.items() if getattr(new, name) is None})


def as_copy(new: NewVM, source: Mapping[str, Any]) -> NewVM:
    """The request for a copy of a snapshot: what the guest's memory depends on comes from there.

    Raises Invalid if the request asks for something else.
    """
    for name, value in source.items():
        asked = getattr(new, name)
        if asked is not None and asked != value:
            raise Invalid(f"{name}: a copy of a snapshot keeps the snapshot's ({value}); leave it out")
    return replace(new, **source)


def specify(new: NewVM, template: Template | None, image: Image, defaults: Defaults, *, host_mem_mib: int) -> VMSpec:
    """The VM's specification. Raises Invalid for values no VM can have, Exhausted for more memory than the host has."""
    spec = VMSpec(
        image_id=image.id,
        template_id=template.id if template else None,
        name=new.name,
        vcpu_count=new.vcpu_count if new.vcpu_count is not None else defaults.vcpu_count,
        mem_mib=new.mem_mib if new.mem_mib is not None else defaults.mem_mib,
        boot_args=new.boot_args if new.boot_args is not None else defaults.boot_args,
        enable_network=new.enable_network if new.enable_network is not None else True,
        user_data=new.user_data,
        idle_timeout=new.idle_timeout,
        metadata=MappingProxyType(dict(new.metadata or {})),
    )
    if not 1 <= spec.vcpu_count <= MAX_VCPUS:
        raise Invalid(f"vcpu_count: must be between 1 and {MAX_VCPUS}")
    if not MIN_MEM_MIB <= spec.mem_mib <= MAX_MEM_MIB:
        raise Invalid(f"mem_mib: must be between {MIN_MEM_MIB} and {MAX_MEM_MIB}")
    if spec.mem_mib > host_mem_mib:
        raise Exhausted(f"mem_mib: the host has {host_mem_mib} MiB of memory, the VM asks for {spec.mem_mib}")
    return spec
