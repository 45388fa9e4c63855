"""SSH public keys as users paste them: read strictly, so that what is stored is one plain key and nothing else.

The wire form of each type: RFC 4253 section 6.6 (RSA), RFC 5656 section 3.1 (ECDSA), RFC 8709 (Ed25519) and OpenSSH's
PROTOCOL.u2f (security keys). No refusal repeats what was sent: it may be a private key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from hatchvm.base.errors import Invalid

MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 16384

#: Curve -> bytes of an uncompressed point: a 4, then both coordinates.
_POINT_BYTES: Final = MappingProxyType({b"nistp256": 65, b"nistp384": 97, b"nistp521": 133})
_PRIVATE: Final = ("PRIVATE KEY", "PuTTY-User-Key-File")


@dataclass(frozen=True, slots=True)
class PublicKey:
    """`line`: type and base64 body. `fingerprint`: as `ssh-keygen -l` prints it. `comment`: what followed the body."""

    line: str
    fingerprint: str
    comment: str


def parse(text: str) -> PublicKey:
    """Read one line as in `id_ed25519.pub`. Raises Invalid with a sentence about the field `public_key`."""
    if any(mark in text for mark in _PRIVATE):
        raise Invalid("public_key is a private key: keep that to yourself and send the file that ends in .pub")
    line = text.strip()
    if not line:
        raise Invalid("public_key is empty")
    if not line.isprintable():
        raise Invalid("public_key must be one line, as in a file that ends in .pub")
    words = line.split(maxsplit=2)
    reader = _READERS.get(words[0])
    if reader is None:
        raise Invalid(_why_not(words))
    blob = _decode(words[1] if len(words) > 1 else "")
    if not reader(_Fields(blob, words[0])):
        raise _damaged()
    return PublicKey(
        line=f"{words[0]} {base64.b64encode(blob).decode()}",
        fingerprint="SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("="),
        comment=words[2] if len(words) > 2 else "",
    )


def _why_not(words: list[str]) -> str:
    if "-cert-v01@" in words[0]:
        return "public_key is a certificate: send the key that it certifies"
    if words[0] == "ssh-dss":
        return "public_key is a DSA key, which is too weak: make one with ssh-keygen -t ed25519"
    if any(word in _READERS for word in " ".join(words).split()):
        return "public_key must begin with the key's type: options before it are not supported"
    return f"public_key must begin with one of {', '.join(_READERS)}"


def _decode(body: str) -> bytes:
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise _damaged() from None


def _damaged() -> Invalid:
    return Invalid("public_key is cut off or damaged: copy the whole line of the file that ends in .pub")


class _Fields:
    """The length-prefixed fields of a key (RFC 4251 section 5), its type first, taken one by one."""

    def __init__(self, blob: bytes, kind: str) -> None:
        self._left = blob
        self.kind = kind.encode()

    def take(self) -> bytes:
        """The next field. Raises Invalid if the blob is too short for it."""
        size = int.from_bytes(self._left[:4], "big")
        field, self._left = self._left[4 : 4 + size], self._left[4 + size :]
        if len(field) != size or not size:
            raise _damaged()
        return field

    def end(self) -> bool:
        return not self._left


def _ed25519(fields: _Fields) -> bool:
    return fields.take() == fields.kind and len(fields.take()) == 32 and fields.end()


def _ecdsa(fields: _Fields) -> bool:
    curve = fields.kind.removeprefix(b"ecdsa-sha2-")
    return fields.take() == fields.kind and fields.take() == curve and _is_point(fields, curve) and fields.end()


def _sk_ed25519(fields: _Fields) -> bool:
    return fields.take() == fields.kind and len(fields.take()) == 32 and bool(fields.take()) and fields.end()


def _sk_ecdsa(fields: _Fields) -> bool:
    curve = b"nistp256"
    if fields.take() != fields.kind or fields.take() != curve:
        return False
    return _is_point(fields, curve) and bool(fields.take()) and fields.end()


def _is_point(fields: _Fields, curve: bytes) -> bool:
    point = fields.take()
    return len(point) == _POINT_BYTES[curve] and point[0] == 4


def _rsa(fields: _Fields) -> bool:
    if fields.take() != fields.kind:
        return False
    exponent, modulus = (int.from_bytes(fields.take(), "big", signed=True) for _ in range(2))
    if exponent < 3 or modulus < 3 or not fields.end():
        return False
    if not MIN_RSA_BITS <= modulus.bit_length() <= MAX_RSA_BITS:
        raise Invalid(f"public_key is an RSA key of {modulus.bit_length()} bits; {MIN_RSA_BITS} are the least")
    return True


_READERS: Final[MappingProxyType[str, Callable[[_Fields], bool]]] = MappingProxyType(
    {
        "ssh-ed25519": _ed25519,
        "ecdsa-sha2-nistp256": _ecdsa,
        "ecdsa-sha2-nistp384": _ecdsa,
        "ecdsa-sha2-nistp521": _ecdsa,
        "ssh-rsa": _rsa,
        "sk-ssh-ed25519@openssh.com": _sk_ed25519,
        "sk-ecdsa-sha2-nistp256@openssh.com": _sk_ecdsa,
    }
)
