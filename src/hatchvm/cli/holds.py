"""`hatchvm hold`."""

from __future__ import annotations

from typing import Final

from cyclopts import App

from hatchvm.cli.session import InSession

app = App(name="hold", help="Keep VMs awake for a while; `hatchvm vm activity` shows all that does.")

_COLUMNS: Final = ("id", "reason", "created_at", "expires_at")


@app.command
def add(vm: str, /, *, ttl: str, reason: str = "", session: InSession) -> None:
    """Keep a running VM from being suspended by itself. It does not wake one that sleeps.

    Parameters
    ----------
    ttl
        How long, such as 30m; from 1s to 720h.
    reason
        What for, to know later.
    """
    with session.client() as client:
        session.show(client.create_hold(client.find_vm(vm), ttl, reason))


@app.command(name="list")
def list_holds(vm: str, /, *, session: InSession) -> None:
    """List the holds of a VM, newest first."""
    with session.client() as client:
        session.show_all(client.list_holds(client.find_vm(vm)), _COLUMNS)


@app.command
def renew(vm: str, hold: str, /, *, ttl: str, session: InSession) -> None:
    """Let a hold last longer, or end sooner.

    Parameters
    ----------
    ttl
        How long from now, such as 30m.
    """
    with session.client() as client:
        session.show(client.renew_hold(client.find_vm(vm), hold, ttl))


@app.command
def release(vm: str, hold: str, /, *, session: InSession) -> None:
    """End a hold. The VM's idle time begins now."""
    with session.client() as client:
        client.release_hold(client.find_vm(vm), hold)
    session.show_deleted(hold)
