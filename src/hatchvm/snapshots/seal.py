"""Encryption at rest: AES-256-GCM under a key of its own for every pack and every manifest.

The key file holds one key of 64 hex digits a line, `#` begins a comment. The first key seals, every key opens: to
rotate, put a new one on top. An object's key is derived (HKDF-SHA256) from the file's key and the object's context,
which is never used twice, so the number of a piece is nonce enough.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hatchvm.base.errors import Invalid, Unsupported

#: Length of a key id; all zeros: not sealed.
ID_BYTES: Final = 8
OPEN: Final = bytes(ID_BYTES)
#: What sealing adds to a piece.
TAG_BYTES: Final = 16
_KEY_DIGITS: Final = 64
_KEY: Final = re.compile(f"[0-9a-fA-F]{{{_KEY_DIGITS}}}")


class Sealer:
    """Seals and opens the pieces of one object. Each number must be used once for sealing."""

    def __init__(self, key: bytes, context: bytes) -> None:
        self._cipher = AESGCM(HKDF(SHA256(), 32, salt=None, info=b"hatch snapshot " + context).derive(key))

    def seal(self, number: int, plain: bytes) -> bytes:
        return self._cipher.encrypt(number.to_bytes(12, "little"), plain, None)

    def open(self, number: int, sealed: bytes | memoryview) -> bytes:
        """Raises ValueError if it is not what was sealed here."""
        try:
            return self._cipher.decrypt(number.to_bytes(12, "little"), sealed, None)
        except InvalidTag as error:
            raise ValueError("it cannot be decrypted") from error


class Ring:
    """The keys of an installation; without any, nothing is sealed."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        self._keys = {key_id(key): key for key in keys}

    @classmethod
    def load(cls, path: Path) -> Ring:
        """From a key file. Raises Invalid with a sentence that never shows a key."""
        try:
            if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise Invalid(f"{path} may be read by others: chmod 600 it")
            text = path.read_text("ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise Invalid(f"{path} cannot be read as a key file") from error
        lines = [line.partition("#")[0].strip() for line in text.splitlines()]
        return cls([_key(path, number, line) for number, line in enumerate(lines, 1) if line] or _no_key(path))

    def dump(self) -> list[str]:
        """The keys as text, for another process of ours."""
        return [key.hex() for key in self._keys.values()]

    @property
    def current(self) -> bytes:
        """Id of the key that seals, or OPEN."""
        return next(iter(self._keys), OPEN)

    def sealer(self, key: bytes, context: bytes) -> Sealer | None:
        """The sealer of an object sealed under that key id; None if it is OPEN. Raises Unsupported for a lost key."""
        if key == OPEN:
            return None
        if key not in self._keys:
            raise Unsupported(f"this was encrypted with key {key.hex()}, which is not in HATCH_SNAPSHOT_KEY_FILE")
        return Sealer(self._keys[key], context)


def key_id(key: bytes) -> bytes:
    return blake3(key, derive_key_context="hatch snapshot key id").digest(ID_BYTES)


def _key(path: Path, number: int, line: str) -> bytes:
    if _KEY.fullmatch(line):
        return bytes.fromhex(line)
    raise Invalid(f"{path}: line {number} is not a key of {_KEY_DIGITS} hex digits; make one: openssl rand -hex 32")


def _no_key(path: Path) -> list[bytes]:
    raise Invalid(f"{path} holds no key; make one: openssl rand -hex 32")
