"""The house's own SSH keys: one that every VM lets in, and one by which users know the SSH front."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from hatchvm.base.errors import Unsupported
from hatchvm.base.files import write_atomic
from hatchvm.base.paths import DataPaths

_COMMENT: Final = "hatch"


def ensure_ssh_keys(paths: DataPaths) -> str:
    """Make the two keys if they are missing; the line that every VM gets among its authorized keys.

    Blocks for two fsyncs. Raises Unsupported, naming the file, if one that is there cannot be used.
    """
    try:
        paths.ssh.mkdir(mode=0o700, exist_ok=True)
        _ensure(paths.front_key)
        return _ensure(paths.house_key)
    except OSError as error:
        raise Unsupported(f"{error.filename or paths.ssh} cannot be used: {error.strerror}") from error


def _ensure(path: Path) -> str:
    """The public line of the key at `path`, which is made if it is not there. Raises OSError, Unsupported."""
    if not path.exists():
        made = Ed25519PrivateKey.generate()
        write_atomic(path, made.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), mode=0o600)
    line = _public_line(path)
    # Written anew each time: it may be missing since a crash, or be another key's since somebody replaced the first.
    write_atomic(path.with_name(f"{path.name}.pub"), f"{line}\n".encode(), mode=0o644, durable=False)
    return line


def _public_line(path: Path) -> str:
    try:
        key = load_ssh_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        sentence = f"{path} is not a private SSH key without a passphrase: restore it, or remove it to get a new one"
        raise Unsupported(sentence, detail=type(error).__name__) from None
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return f"{public.decode()} {_COMMENT}"
