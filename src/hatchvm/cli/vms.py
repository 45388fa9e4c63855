"""`hatchvm vm`."""

from __future__ import annotations

from typing import Annotated, Final, cast

from cyclopts import App, Parameter

from hatchvm.cli.options import Defaults, given
from hatchvm.cli.session import InSession
from hatchvm.client.answers import NewVM

app = App(name="vm", help="Create VMs and move them between states. A VM is named by its id or its name.")

_COLUMNS: Final = ("id", "name", "state", "image_id", "vcpu_count", "mem_mib", "ssh_port", "last_active_at")


@app.command
def create(
    *,
    name: str | None = None,
    template: str | None = None,
    snapshot: str | None = None,
    guest_ip: str | None = None,
    guest_mac: str | None = None,
    defaults: Defaults = Defaults(),  # noqa: B008
    session: InSession,
) -> None:
    """Create a VM and start it.

    Parameters
    ----------
    name
        A name for it, unique.
    template
        Template to take defaults from, by id or name.
    snapshot
        Start as a copy of this snapshot instead of booting.
    guest_ip
        Its IPv4 address.
    guest_mac
        Its MAC address.
    """
    own = given(name=name, template_id=template, snapshot_id=snapshot, guest_ip=guest_ip, guest_mac=guest_mac)
    fields = cast(NewVM, {**defaults.fields(), **own})
    with session.client() as client:
        session.show(client.create_vm(**fields))


@app.command(name="list")
def list_vms(*, session: InSession) -> None:
    """List VMs, newest first."""
    with session.client() as client:
        session.show_all(client.list_vms(), _COLUMNS)


@app.command
def get(vm: str, /, *, session: InSession) -> None:
    """Show one VM."""
    with session.client() as client:
        session.show(client.get_vm(client.find_vm(vm)))


@app.command
def delete(vm: str, /, *, session: InSession) -> None:
    """Delete a VM with its routes and snapshots."""
    with session.client() as client:
        client.delete_vm(client.find_vm(vm))
    session.show_deleted(vm)


@app.command
def stop(vm: str, /, *, session: InSession) -> None:
    """Shut a guest down; its disk stays."""
    with session.client() as client:
        session.show(client.stop_vm(client.find_vm(vm)))


@app.command
def start(vm: str, /, *, session: InSession) -> None:
    """Boot a stopped VM from its disk."""
    with session.client() as client:
        session.show(client.start_vm(client.find_vm(vm)))


@app.command
def snapshot(vm: str, /, *, session: InSession) -> None:
    """Suspend a running VM into a snapshot."""
    with session.client() as client:
        session.show(client.snapshot_vm(client.find_vm(vm)))


@app.command
def restore(
    vm: str,
    /,
    *,
    snapshot: str | None = None,
    disk: Annotated[bool, Parameter(negative="")] = False,
    session: InSession,
) -> None:
    """Resume a VM where it left off, or boot it from the disk it had.

    Parameters
    ----------
    snapshot
        Snapshot to restore; the latest if not given.
    disk
        Boot from the disk and forget the memory, such as memory that fits no host any more.
    """
    with session.client() as client:
        session.show(client.restore_vm(client.find_vm(vm), snapshot, mode="disk" if disk else "memory"))
