"""`hatchvm ssh`: OpenSSH's own client, told how to reach a VM."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from cyclopts import Parameter

from hatchvm.base.errors import Conflict, Invalid, NotFound, Unsupported
from hatchvm.base.ids import VM, is_id
from hatchvm.base.paths import DataPaths
from hatchvm.cli.session import InSession
from hatchvm.client import Client


def ssh(
    vm: str,
    /,
    *command: str,
    login: Annotated[str, Parameter(name=["--login", "-l"])] = "root",
    tty: Annotated[bool, Parameter(name=["--tty", "-t"], negative="")] = False,
    print_only: Annotated[bool, Parameter(name="--print", negative="")] = False,
    session: InSession,
) -> None:
    """Log in to a VM, waking it if it sleeps. It uses this Hatch's own key, which new VMs know.

    Parameters
    ----------
    vm
        Its id, its name, or the subdomain of a route to it.
    command
        A command to run there, instead of a shell. Put -- before the first word that begins with a dash.
    login
        The user in the guest.
    tty
        Ask for a terminal, even for a command.
    print_only
        Print the command line of ssh and do not run it.
    """
    with session.client() as client:
        found = client.get_vm(_find(client, vm))
    if found["ssh_port"] is None:
        raise Conflict(f"{vm} has no network card, so SSH cannot reach it")
    words = _command_line(session.url, found["id"], found["ssh_port"])
    words += [*(["-t"] if tty else []), f"{login}@{_host(session.url)}", *command]
    if print_only:
        print(shlex.join(words))
        return
    try:
        os.execvp(words[0], words)
    except FileNotFoundError:
        raise Unsupported("there is no ssh on this machine; Debian's package is openssh-client") from None


def _find(client: Client, name: str) -> str:
    """The id of the VM that is called so. Raises NotFound."""
    found = client.find_vm(name)
    if is_id(found, VM):
        return found
    for route in client.list_routes():
        if route["subdomain"] == name:
            return route["vm_id"]
    raise NotFound(f'no VM is called "{name}"')


def _command_line(url: str, vm_id: str, port: int) -> list[str]:
    paths = DataPaths(Path(os.environ.get("HATCH_DATA_DIR") or "data").absolute())
    if not os.access(paths.house_key, os.R_OK):
        raise Invalid(
            f"this Hatch's SSH key cannot be read in {paths.ssh}: on the daemon's host, set HATCH_DATA_DIR and be its "
            f"user; from elsewhere, add your own key with `hatchvm ssh-key add` and use the port of HATCH_SSH_ADDR: "
            f"ssh -p <port> {vm_id}@{_host(url)}"
        )
    options = {
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": f'"{paths.known_hosts}"',  # quoted: it is a list of words
        # A VM keeps its host key wherever it runs; a changed one deserves OpenSSH's warning.
        "HostKeyAlias": vm_id,
        "StrictHostKeyChecking": "accept-new",
    }
    words = ["ssh", "-p", str(port), "-i", str(paths.house_key)]
    return words + [word for name, value in options.items() for word in ("-o", f"{name}={value}")]


def _host(url: str) -> str:
    host = urlsplit(url).hostname
    if host is None:
        raise Invalid(f"{url!r} is not an http:// or https:// URL")
    return host
