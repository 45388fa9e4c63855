"""`hatchvm route`."""

from __future__ import annotations

from typing import Annotated, Final, cast

from cyclopts import App, Parameter

from hatchvm.base.errors import Invalid
from hatchvm.cli.options import given
from hatchvm.cli.session import InSession
from hatchvm.client.answers import RouteChanges

app = App(name="route", help="Lead subdomains and custom domains to VMs.")

_COLUMNS: Final = ("id", "vm_id", "subdomain", "domain", "domain_verified", "target_port", "auto_wake", "url")


@app.command
def create(
    vm: str,
    /,
    *,
    port: int,
    subdomain: str | None = None,
    domain: str | None = None,
    auto_wake: bool = True,
    session: InSession,
) -> None:
    """Lead a subdomain to a port of a VM.

    Parameters
    ----------
    port
        The guest's port.
    subdomain
        The name; random if not given.
    domain
        A name of your own, like app.example.com, which is served once it is verified.
    auto_wake
        Whether a request wakes the VM when it sleeps.
    """
    with session.client() as client:
        session.show(
            client.create_route(
                client.find_vm(vm), target_port=port, subdomain=subdomain, auto_wake=auto_wake, domain=domain
            )
        )


@app.command(name="list")
def list_routes(vm: str | None = None, /, *, session: InSession) -> None:
    """List routes, of one VM or of all."""
    with session.client() as client:
        session.show_all(client.list_routes(vm and client.find_vm(vm)), _COLUMNS)


@app.command
def update(
    route: str,
    /,
    *,
    port: int | None = None,
    subdomain: str | None = None,
    domain: str | None = None,
    no_domain: Annotated[bool, Parameter(negative="")] = False,
    auto_wake: bool | None = None,
    session: InSession,
) -> None:
    """Change a route; what is not given stays.

    Parameters
    ----------
    port
        The guest's port.
    subdomain
        The name.
    domain
        A name of your own, like app.example.com, which is served once it is verified.
    no_domain
        Take the route's domain away.
    auto_wake
        Whether a request wakes the VM when it sleeps.
    """
    if no_domain and domain is not None:
        raise Invalid("--domain and --no-domain: give one of the two")
    changes = cast(RouteChanges, given(target_port=port, subdomain=subdomain, auto_wake=auto_wake, domain=domain))
    if no_domain:
        changes["domain"] = None
    with session.client() as client:
        session.show(client.update_route(route, **changes))


@app.command
def verify(route: str, /, *, session: InSession) -> None:
    """Serve a route's domain if the DNS has the record that domain_challenge names."""
    with session.client() as client:
        session.show(client.verify_route(route))


@app.command
def delete(route: str, /, *, session: InSession) -> None:
    """Delete a route; its VM is not touched."""
    with session.client() as client:
        client.delete_route(route)
    session.show_deleted(route)
