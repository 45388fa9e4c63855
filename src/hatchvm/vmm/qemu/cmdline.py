"""The QEMU command line, as a pure function of a launch plan.

Device state can only be loaded by a process with the same devices in the same order, so a launch and a restore differ
in nothing but what is incoming and which ports are forwarded. Paths are relative to the VM's folder where they lie in
it: a comma in a data directory's name then cannot become an option.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from hatchvm.base.errors import Invalid
from hatchvm.ports.vmm import LaunchPlan, NetPlan
from hatchvm.vmm import guest_agent

Accel = Literal["kvm", "tcg"]
NETDEV: Final = "net0"
#: The character device that leads to the guest's agent.
AGENT: Final = "agent"
MACHINE: Final = "microvm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What is the same for every VM on this host. `host_cpu`: see `host.cpu_of`."""

    binary: str
    version: str
    accel: Accel
    tsc_khz: int
    host_cpu: tuple[str, str]

    @property
    def cpu(self) -> str:
        return "host" if self.accel == "kvm" else "max"

    @property
    def guest_cpu(self) -> tuple[str, str]:
        """(model, digest of flags) for a stamp. An emulated CPU has what this QEMU emulates, whatever the host's."""
        return self.host_cpu if self.accel == "kvm" else (self.cpu, "")


def argv(plan: LaunchPlan, machine: Machine, *, qmp_fd: int, incoming: bool) -> list[str]:
    """The arguments for a launch (the guest runs at once) or, with `incoming`, for a restore (paused once loaded).

    `qmp_fd` is a listening socket: whoever connects is queued by the kernel until QEMU is ready, so nobody polls."""
    boot = plan.boot
    args = [
        machine.binary,
        *("-name", plan.vm_id),
        *("-M", f"{MACHINE},x-option-roms=off,rtc=on,acpi=on,memory-backend=ram"),
        *("-accel", machine.accel, "-cpu", machine.cpu, "-smp", str(plan.vcpu_count), "-m", f"{plan.mem_mib}M"),
        *("-object", f"memory-backend-file,id=ram,size={plan.mem_mib}M,mem-path={_served(plan)}memory,share=on"),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-chardev", f"socket,id=qmp,fd={qmp_fd},server=on,wait=off", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", "file,id=console,path=console.log,append=on", "-serial", "chardev:console"),
        *("-kernel", _escape(boot.kernel), "-append", cmdline(plan, machine)),
    ]
    if boot.initrd is not None:
        args += ["-initrd", _escape(boot.initrd)]
    args += _devices(plan)
    if plan.net is not None:
        args += ["-netdev", _netdev(plan.net)]
        args += ["-device", f"virtio-net-device,netdev={NETDEV},mac={plan.net.guest_mac}"]
    if incoming:
        args += ["-S", "-incoming", "defer"]
    return args


def cmdline(plan: LaunchPlan, machine: Machine) -> str:
    """The kernel's arguments. Under emulation a guest that calibrates its TSC against nothing hangs two times in five
    unless it is told the frequency."""
    return plan.boot_args + (f" tsc_early_khz={machine.tsc_khz}" if machine.accel == "tcg" else "")


def devices_digest(plan: LaunchPlan) -> str:
    """Names the device list, for a snapshot's stamp."""
    devices = [argument for argument in _devices(plan) if argument.startswith("virt")]
    devices.append("no net" if plan.net is None else "net" if plan.net.tap_name is None else "net on a TAP")
    return hashlib.sha256("\n".join(devices).encode()).hexdigest()[:16]


def guest_network(net: NetPlan) -> tuple[str, str, str]:
    """(network, gateway, name server) of the guest's private user network: the /24 around its address."""
    network = ipaddress.ip_network(f"{net.guest_ip}/24", strict=False)
    free = [str(network[n]) for n in (2, 3, 4) if str(network[n]) != net.guest_ip]
    return str(network), free[0], free[1]


def _devices(plan: LaunchPlan) -> list[str]:
    args = []
    boot = plan.boot
    if boot.rootfs is not None:
        # The image is named here, not believed from the overlay's header: a fetched disk may come from another host.
        base = f"backing.driver={boot.rootfs_format},backing.file.filename={_escape(boot.rootfs).replace(',', ',,')}"
        root = f"id=root,if=none,file={_served(plan)}disk,format=qcow2,discard=unmap,detect-zeroes=unmap"
        args += ["-drive", f"{root},{base}"]
        args += ["-device", "virtio-blk-device,drive=root"]
    if plan.has_seed:
        args += ["-drive", "id=seed,if=none,file=seed.iso,format=raw,readonly=on"]
        args += ["-device", "virtio-blk-device,drive=seed"]
    args += ["-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-device,rng=rng"]
    args += ["-device", "virtio-balloon-device,free-page-reporting=on"]
    args += ["-chardev", f"socket,id={AGENT},path={plan.paths.agent.name},server=on,wait=off"]
    args += [
        "-device",
        "virtio-serial-device,max_ports=2",
        "-device",
        f"virtserialport,chardev={AGENT},name={guest_agent.PORT}",
    ]
    return args


def _served(plan: LaunchPlan) -> str:
    """Before the names of memory and disk."""
    return f"{plan.paths.lazy.name}/" if plan.lazy else ""


def _netdev(net: NetPlan) -> str:
    if net.tap_name is not None:
        return f"tap,id={NETDEV},fd={net.tap_fd}"
    network, gateway, dns = guest_network(net)
    forwards = "".join(f",hostfwd=tcp:127.0.0.1:{host}-:{guest}" for guest, host in sorted(net.forwards.items()))
    return f"user,id={NETDEV},ipv6=off,net={network},host={gateway},dns={dns},dhcpstart={net.guest_ip}{forwards}"


def _escape(path: Path) -> str:
    if "\n" in str(path):
        raise Invalid("an image's path may not contain a line break")
    return str(path)
