"""What clients send. A field that may be left out may not be null, unless null means something."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hatchvm.api.fields import (
    TTL,
    Body,
    BootArgs,
    Domain,
    Duration,
    GuestIP,
    GuestMAC,
    HostPath,
    IdleTimeout,
    MemMiB,
    Metadata,
    Name,
    Port,
    PublicKey,
    Reason,
    Reference,
    Subdomain,
    UserData,
    VCPUs,
    optional,
)
from hatchvm.domain.image import Builtin


class VMDefaults(Body):
    """The fields of a new VM that a template can hold."""

    image_id: Reference = optional()
    vcpu_count: VCPUs = optional()
    mem_mib: MemMiB = optional()
    boot_args: BootArgs = optional()
    enable_network: bool = optional()
    user_data: UserData = optional()
    idle_timeout: IdleTimeout = optional()
    metadata: Metadata = optional()


class VMCreate(VMDefaults):
    """A new VM. What is left out comes from the template, else from the node."""

    template_id: Reference = optional()
    name: Name = optional()
    guest_ip: GuestIP = optional()
    guest_mac: GuestMAC = optional()
    snapshot_id: Reference = optional()


class VMRestore(Body):
    """Which snapshot to restore, the latest if left out; and what of it.

    `memory`: the VM goes on exactly where it left off. `disk`: it boots from the disk, its memory is forgotten.
    """

    snapshot_id: Reference = optional()
    mode: Literal["memory", "disk"] = "memory"


class HoldCreate(Body):
    """How long the VM is to be kept awake, from 1s to 720h, and what for."""

    ttl: TTL
    reason: Reason = optional()


class HoldRenew(Body):
    """How long the VM is to be kept awake from now on."""

    ttl: TTL


class StoreGC(Body):
    """How long something must have been unneeded to be removed; if left out, as configured.

    A shorter time than that is refused while a snapshot is being stored or restored.
    """

    grace: Duration = optional()


class RouteCreate(Body):
    """A new route. Without a subdomain it gets 12 random characters. A domain serves nothing before it is verified."""

    subdomain: Subdomain = optional()
    target_port: Port
    auto_wake: bool = True
    domain: Domain = optional()


class RouteUpdate(Body):
    """What to change of a route. A null domain takes the route's away; another one must be verified anew."""

    subdomain: Subdomain = optional()
    target_port: Port = optional()
    auto_wake: bool = optional()
    domain: Domain | None = optional()


class ImageCreate(Body):
    """Files of this host to register as an image. They are copied: changing them later changes nothing."""

    name: Name = optional()
    kernel_path: HostPath
    initrd_path: HostPath = optional()
    rootfs_path: HostPath = optional()
    boot_args: BootArgs = optional()


class BuiltinImage(Body):
    """Which built-in image."""

    name: Builtin


class TemplateCreate(Body):
    """A named set of defaults."""

    name: Name
    defaults: VMDefaults = Field(default_factory=VMDefaults)


class KeyCreate(Body):
    """A name for the key, to know later whose it is."""

    name: Name


class SSHKeyCreate(Body):
    """A name for the key, to know later whose it is, and the line of the file that ends in `.pub`."""

    name: Name
    public_key: PublicKey
