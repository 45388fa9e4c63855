"""`hatchvm vm`."""

from __future__ import annotations

from typing import Annotated, Final, cast

from cyclopts import App, Parameter

from hatchvm.base.units import format_duration
from hatchvm.cli.options import Defaults, given
from hatchvm.cli.session import InSession
from hatchvm.client.answers import Activity, NewVM, Woken

app = App(name="vm", help="Create VMs and move them between states. A VM is named by its id or its name.")

_COLUMNS: Final = ("id", "name", "state", "image_id", "vcpu_count", "mem_mib", "ssh_port", "last_active_at")
_HOLDS: Final = ("kind", "peer", "id", "reason", "since", "last_byte_at", "ends_at")


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
def activity(vm: str, /, *, session: InSession) -> None:
    """Show why a VM is awake, why it woke, and when it will sleep."""
    with session.client() as client:
        found = client.get_activity(client.find_vm(vm))
    if session.json:
        session.show(found)
        return
    sleeps, woken = found["sleeps"], found["last_wake"]
    session.show(
        {
            "state": found["state"],
            "sleeps": sleeps["at"] or f"not by itself: {sleeps['because']}",
            "idle for": f"{format_duration(round(found['idle_seconds']))} of {found['idle_timeout']}",
            "last active at": found["last_active_at"],
            "last woken": None if woken is None else _told(woken),
            "kept awake by": _amount(found),
        }
    )
    if found["holds"]:
        session.show_all(found["holds"], _HOLDS)


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


def _told(woken: Woken) -> str:
    """`2026-03-06T14:30:00Z by http from 10.0.0.5, in 0.4 s; put right: clock; not put right: random (why)`."""
    asked = f"{woken['reason']} from {woken['by']}" if woken["by"] else woken["reason"]
    told = [f"{woken['at']} by {asked}, in {woken['seconds']:.1f} s"]
    if done := woken["put_right"]["done"]:
        told.append(f"put right: {', '.join(done)}")
    if undone := woken["put_right"]["undone"]:
        told.append(f"not put right: {', '.join(f'{what} ({why})' for what, why in undone.items())}")
    return "; ".join(told)


def _amount(found: Activity) -> str:
    count, listed = found["hold_count"], len(found["holds"])
    if not count:
        return "nobody"
    more = f", of which these are the {listed} oldest" if count > listed else ""
    return f"{count} hold{'s' if count > 1 else ''}{more}"
