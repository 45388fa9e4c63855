"""The certificates of the TLS port: read from files, chosen by the name that a client asks for, read again on change.

Connections keep the certificate with which they began. A change is loaded when two looks have found it the same, so a
pair that is being replaced is left alone; one that cannot be loaded leaves the old one in place.

Protocols and ciphers are those of Mozilla's "intermediate" recommendation (version 5.7) without finite-field DHE.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, TypeAlias

import structlog
from cryptography import x509

from hatchvm.base.clock import Clock, SystemClock
from hatchvm.base.errors import Invalid
from hatchvm.telemetry import logs

_log = structlog.get_logger()

#: What is offered to clients by ALPN, in the order of preference.
ALPN: Final = ("h2", "http/1.1")
_CIPHERS: Final = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)
#: OpenSSL's words for a key that is another certificate's; the last one if it is of another kind, too.
_STRANGERS: Final = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})
_SOON: Final = timedelta(days=14)

#: What tells a file from a later one at its place; None: it cannot be looked at.
_Stamp: TypeAlias = tuple[int, int, int, int] | None


@dataclass(frozen=True, slots=True)
class Pair:
    """Two PEM files: a certificate, followed by those that lead to its authority, and its private key."""

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Certificate:
    """A loaded pair. `names`: DNS names for which it stands, lower case, `*.example.com` among them."""

    path: Path
    context: ssl.SSLContext
    names: tuple[str, ...]
    expires_at: datetime

    def caution(self, now: datetime) -> str:
        """A sentence about a certificate that clients refuse, or soon will; else an empty string."""
        left = self.expires_at - now
        day = f"{self.expires_at:%Y-%m-%d %H:%M} UTC"
        if left <= timedelta():
            return f"the certificate {self.path} expired on {day}: clients refuse it"
        return f"the certificate {self.path} expires on {day}: renew it" if left <= _SOON else ""


def load(pair: Pair, alpn: Sequence[str] = ALPN) -> Certificate:
    """Read and check a pair. Raises Invalid with a sentence that names the file at fault."""
    try:
        leaf = x509.load_pem_x509_certificates(pair.certificate.read_bytes())[0]
        names = _names(leaf)
        pair.key.open("rb").close()
    except OSError as error:
        raise Invalid(f"{error.filename} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise Invalid(f"{pair.certificate} holds no certificate in PEM form", detail=str(error)) from error
    return Certificate(pair.certificate, _context_of(pair, alpn), names, leaf.not_valid_after_utc)


class Certificates:
    """All pairs; the first one serves clients whose name no other one stands for, or who tell none.

    Give `context` to the listener: it stays the same object, and every handshake with it takes what is loaded then.
    """

    def __init__(self, pairs: Sequence[Pair], *, alpn: Sequence[str] = ALPN, clock: Clock | None = None) -> None:
        """Loads every pair, one at least. Raises Invalid, see `load`."""
        self._clock = clock or SystemClock()
        self._alpn = alpn
        self._shelves = [_Shelf(pair, alpn) for pair in pairs]
        self._by_name: dict[str, Certificate] = {}
        self._index()
        self.context = _new_context(alpn)
        self.context.sni_callback = self._choose
        for shelf in self._shelves:
            self._report(shelf.certificate)

    def find(self, name: str | None) -> Certificate:
        """The certificate for a client that asks for `name`: exactly its, else a wildcard's, else the first."""
        return (self._named(name) if name else None) or self._shelves[0].certificate

    def stand_for(self, name: str) -> bool:
        """Whether one of them names `name`, by itself or with a wildcard."""
        return self._named(name) is not None

    def look(self) -> None:
        """Load what has changed on disk since, and stayed the same since the last look."""
        for shelf in self._shelves:
            if not shelf.changed():
                continue
            try:
                shelf.load(self._alpn)
            except Invalid as error:
                _log.error(
                    logs.CERTIFICATE_NOT_LOADED,
                    certificate=str(shelf.pair.certificate),
                    key=str(shelf.pair.key),
                    error=str(error),
                )
            else:
                self._index()
                self._report(shelf.certificate)

    async def watch(self, *, interval_s: float = 1.0) -> None:
        """Look again and again, for ever."""
        while True:
            await asyncio.sleep(interval_s)
            self.look()

    def _named(self, name: str) -> Certificate | None:
        name = name.lower().rstrip(".")
        return self._by_name.get(name) or self._by_name.get(f"*.{name.partition('.')[2]}")

    def _index(self) -> None:
        self._by_name = {}
        for shelf in self._shelves:
            for name in shelf.certificate.names:
                self._by_name.setdefault(name, shelf.certificate)

    def _choose(self, tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        tls.context = self.find(name).context

    def _report(self, certificate: Certificate) -> None:
        expires = certificate.expires_at.isoformat()
        _log.info(
            logs.CERTIFICATE_LOADED, certificate=str(certificate.path), names=list(certificate.names), expires=expires
        )
        if caution := certificate.caution(self._clock.now()):
            _log.warning(logs.CERTIFICATE_EXPIRES, certificate=str(certificate.path), error=caution)


class _Shelf:
    """A pair's place: what is loaded, and which files were tried last."""

    def __init__(self, pair: Pair, alpn: Sequence[str]) -> None:
        self.pair = pair
        self._tried = self._seen = self._stamps()  # before they are read: a change meanwhile is seen as one
        self.certificate = load(pair, alpn)

    def changed(self) -> bool:
        """Whether other files than those tried last are there, the same ones as at the last call."""
        before, self._seen = self._seen, self._stamps()
        return self._seen == before and self._seen != self._tried

    def load(self, alpn: Sequence[str]) -> None:
        """Raises Invalid, and keeps the certificate; these files are not tried again."""
        self._tried = self._seen
        self.certificate = load(self.pair, alpn)

    def _stamps(self) -> tuple[_Stamp, _Stamp]:
        return _stamp(self.pair.certificate), _stamp(self.pair.key)


def _stamp(path: Path) -> _Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _names(leaf: x509.Certificate) -> tuple[str, ...]:
    """Raises ValueError if its extensions cannot be read."""
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    return tuple(name.lower() for name in found.value.get_values_for_type(x509.DNSName))


def _context_of(pair: Pair, alpn: Sequence[str]) -> ssl.SSLContext:
    def refuse() -> bytes:
        raise Invalid(f"{pair.key} has a passphrase, which nobody is there to type; remove it from the key")

    context = _new_context(alpn)
    try:
        context.load_cert_chain(pair.certificate, pair.key, password=refuse)
    except ssl.SSLError as error:
        if error.reason in _STRANGERS:
            raise Invalid(f"{pair.certificate} and {pair.key} do not belong together") from error
        if error.reason is None:
            raise Invalid(f"{pair.key} holds no private key in PEM form") from error
        reason = error.reason.lower().replace("_", " ")
        raise Invalid(f"{pair.certificate} with {pair.key} cannot serve: {reason}") from error
    except OSError as error:
        raise Invalid(f"{pair.certificate} or {pair.key} cannot be read: {error.strerror}") from error
    return context


def _new_context(alpn: Sequence[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(list(alpn))
    return context
