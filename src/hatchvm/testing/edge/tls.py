"""Certificates made for a test, and a proxy's TLS port with clients that trust them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from hatchvm.edge.http.tls.certificates import Certificates, Pair
from hatchvm.testing.stage import Stage, Wire

_SOME: Final = 64 * 1024


def make_pair(
    folder: Path, name: str, names: Sequence[str], *, days: float = 90, passphrase: str | None = None
) -> Pair:
    """A self-signed certificate for `names`, valid for so many days, in `<name>.pem` and `<name>.key`.

    Files that are there are replaced by new ones.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)  # noqa: TID251  # OpenSSL compares with the host's clock
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=365)).not_valid_after(now + timedelta(days=days))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(one) for one in names]), False)
    certificate = builder.sign(key, hashes.SHA256())
    lock: KeySerializationEncryption = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    _replace(pair.certificate, certificate.public_bytes(Encoding.PEM))
    _replace(pair.key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock))
    return pair


def _replace(path: Path, data: bytes) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(data)
    new.replace(path)


def trusting(*pairs: Pair) -> ssl.SSLContext:
    """A client's context that believes in these certificates alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for pair in pairs:
        context.load_verify_locations(pair.certificate)
    return context


class TLSStage:
    """A `Stage` whose proxy has a TLS port. Use `async with TLSStage.open(pairs)`."""

    def __init__(self, stage: Stage, pairs: Sequence[Pair]) -> None:
        self.stage = stage
        self.certificates = Certificates(pairs)
        self.trusting = trusting(*pairs)
        self.port = 0
        self._wires: list[Wire] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, pairs: Sequence[Pair]) -> AsyncIterator[TLSStage]:
        async with Stage.open() as stage:
            tls = cls(stage, pairs)
            tls.port = await stage.proxy.start_tls("127.0.0.1", 0, tls.certificates.context)
            try:
                yield tls
            finally:
                for wire in tls._wires:
                    wire.reset()

    async def client(self, name: str = "app.hatch.local", context: ssl.SSLContext | None = None) -> Wire:
        """A connection that asks for `name` and believes what is served under it."""
        wire = Wire(
            *await asyncio.open_connection(
                "127.0.0.1", self.port, ssl=context or self.trusting, server_hostname=name, limit=_SOME
            )
        )
        self._wires.append(wire)
        return wire

    async def tcp(self) -> Wire:
        """A connection without TLS."""
        wire = Wire(*await asyncio.open_connection("127.0.0.1", self.port))
        self._wires.append(wire)
        return wire

    async def by_hand(self, name: str = "app.hatch.local") -> ByHand:
        """A connection whose every byte the test sends itself; its handshake is done."""
        client = ByHand(await self.tcp(), self.trusting, name)
        await client.shake_hands()
        return client


class ByHand:
    """A TLS client that can end one direction, or leave without a word."""

    def __init__(self, wire: Wire, context: ssl.SSLContext, name: str) -> None:
        self.wire = wire
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)

    async def shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._flush()
                self._incoming.write(await self.wire.reader.read(_SOME))
        await self._flush()

    async def send(self, data: bytes) -> None:
        self._tls.write(data)
        await self._flush()

    async def end(self) -> None:
        """Say close_notify; still listen."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        await self._flush()

    async def rest(self) -> bytes:
        """Everything until the other side says close_notify. Raises SSLError or OSError if it never does."""
        data = b""
        while True:
            try:
                piece = self._tls.read(_SOME)
            except ssl.SSLWantReadError:
                come = await self.wire.reader.read(_SOME)
                if come:
                    self._incoming.write(come)
                else:
                    self._incoming.write_eof()
                continue
            except ssl.SSLZeroReturnError:
                return data
            if not piece:
                return data
            data += piece

    async def _flush(self) -> None:
        await self.wire.send(self._outgoing.read())
