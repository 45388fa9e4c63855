"""`hatchvm key`: who may call the API. `hatchvm ssh-key`: who may log in to VMs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from cyclopts import App

from hatchvm.base.errors import Invalid
from hatchvm.cli.session import InSession
from hatchvm.domain.public_key import parse

app = App(name="key", help="Make and revoke API keys.")
ssh_keys = App(name="ssh-key", help="Say whose SSH keys may log in to VMs through the daemon's SSH port.")

_COLUMNS: Final = ("id", "name", "created_at")
_SSH_COLUMNS: Final = ("id", "name", "fingerprint", "created_at")
#: Where ssh-keygen puts public keys, the best type first.
_USUAL: Final = ("id_ed25519.pub", "id_ed25519_sk.pub", "id_ecdsa.pub", "id_ecdsa_sk.pub", "id_rsa.pub")


@app.command
def create(name: str, /, *, session: InSession) -> None:
    """Make a key. It is shown now and never again."""
    with session.client() as client:
        session.show(client.create_key(name))


@app.command(name="list")
def list_keys(*, session: InSession) -> None:
    """List keys, without their secrets."""
    with session.client() as client:
        session.show_all(client.list_keys(), _COLUMNS)


@app.command
def delete(key: str, /, *, session: InSession) -> None:
    """Revoke a key, by id."""
    with session.client() as client:
        client.delete_key(key)
    session.show_deleted(key)


@ssh_keys.command
def add(file: Path | None = None, /, *, name: str | None = None, session: InSession) -> None:
    """Let the holder of a key log in to every VM.

    Parameters
    ----------
    file
        The public key; ~/.ssh/id_ed25519.pub or the like if not given.
    name
        A name for it; the key's comment if not given.
    """
    # Read here too: a private key, named by mistake, does not leave this machine.
    key = parse(_read(file or _usual()))
    with session.client() as client:
        session.show(client.create_ssh_key(name or _as_name(key.comment), key.line))


@ssh_keys.command(name="list")
def list_ssh_keys(*, session: InSession) -> None:
    """List the keys, newest first."""
    with session.client() as client:
        session.show_all(client.list_ssh_keys(), _SSH_COLUMNS)


@ssh_keys.command(name="delete")
def delete_ssh_key(key: str, /, *, session: InSession) -> None:
    """Refuse new logins with a key, by id."""
    with session.client() as client:
        client.delete_ssh_key(key)
    session.show_deleted(key)


def _usual() -> Path:
    folder = Path.home() / ".ssh"
    for name in _USUAL:
        if (folder / name).is_file():
            return folder / name
    raise Invalid(f"there is no public key in {folder}: name its file, or make one with ssh-keygen -t ed25519")


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise Invalid(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Invalid(f"{path} is no public key") from None


def _as_name(comment: str) -> str:
    """A key's comment as a name: `ann@laptop` is `ann-laptop`."""
    return re.sub(r"[^a-z0-9]+", "-", comment.lower())[:63].strip("-") or "key"
