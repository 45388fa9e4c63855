"""Certificates on disk: what is refused at a start, what a client is given, what happens when files change."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from structlog.testing import capture_logs
from structlog.typing import EventDict

from hatchvm.base import tasks
from hatchvm.base.errors import Invalid
from hatchvm.edge.http.tls.certificates import Certificate, Certificates, Pair, load
from hatchvm.telemetry import logs
from hatchvm.testing.edge.tls import make_pair

NAMES = ["app.example.com", "*.example.com"]


@pytest.fixture
def events() -> Iterator[list[EventDict]]:
    with capture_logs() as events:
        yield events


def other_key(pair: Pair) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def folder_for_key(pair: Pair) -> None:
    pair.key.unlink()
    pair.key.mkdir()


def key_of_another_kind(pair: Pair) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    pair.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


DAMAGE: dict[str, tuple[Callable[[Pair], object], str]] = {
    "no certificate": (lambda pair: pair.certificate.unlink(), "c.pem cannot be read: No such file or directory"),
    "no key": (lambda pair: pair.key.unlink(), "c.key cannot be read: No such file or directory"),
    "a folder": (folder_for_key, "c.key cannot be read: Is a directory"),
    "an empty certificate": (lambda pair: pair.certificate.write_bytes(b""), "c.pem holds no certificate in PEM form"),
    "half a certificate": (
        lambda pair: pair.certificate.write_bytes(pair.certificate.read_bytes()[:300]),
        "c.pem holds no certificate in PEM form",
    ),
    "the key twice": (
        lambda pair: pair.certificate.write_bytes(pair.key.read_bytes()),
        "c.pem holds no certificate in PEM form",
    ),
    "an empty key": (lambda pair: pair.key.write_bytes(b""), "c.key holds no private key in PEM form"),
    "the certificate twice": (
        lambda pair: pair.key.write_bytes(pair.certificate.read_bytes()),
        "c.key holds no private key in PEM form",
    ),
    "half a key": (
        lambda pair: pair.key.write_bytes(pair.key.read_bytes()[:100]),
        "c.key holds no private key in PEM form",
    ),
    "a key of another kind": (key_of_another_kind, "c.pem and .*c.key do not belong together"),
    "another one's key": (other_key, "c.pem and .*c.key do not belong together"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_pair_that_cannot_serve_is_refused_with_the_reason(damage: str, tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "c", NAMES)
    inflict, sentence = DAMAGE[damage]
    inflict(pair)
    with pytest.raises(Invalid, match=sentence + "$") as refusal:
        Certificates([pair])
    assert "PRIVATE KEY" not in str(refusal.value) + refusal.value.detail


def test_a_key_with_a_passphrase_is_refused_rather_than_asked_for(tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "c", NAMES, passphrase="sesame")
    with pytest.raises(Invalid, match=r"c\.key has a passphrase"):
        load(pair)


def test_names_choose_exactly_then_by_wildcard_then_the_first(tmp_path: Path) -> None:
    pairs = [
        make_pair(tmp_path, "default", []),
        make_pair(tmp_path, "wild", ["*.example.com", "Upper.example.org"]),
        make_pair(tmp_path, "exact", ["app.example.com", "upper.example.org"]),
    ]
    certificates = Certificates(pairs)
    chosen = {
        name: certificates.find(name).path.stem
        for name in ["app.example.com", "APP.example.com.", "b.example.com", "a.b.example.com", "example.com", "x", ""]
    }
    assert list(chosen.values()) == ["exact", "exact", "wild", "default", "default", "default", "default"]
    assert certificates.find("upper.example.org").path.stem == "wild"  # the first of two that name it
    assert certificates.find(None).path.stem == "default"
    assert certificates.stand_for("any.example.com")
    assert not certificates.stand_for("example.com")


def test_a_changed_pair_is_loaded_once_it_rests(tmp_path: Path, events: list[EventDict]) -> None:
    pair = make_pair(tmp_path, "c", ["old.example.com"])
    certificates = Certificates([pair])
    certificates.look()
    before = certificates.find(None)
    make_pair(tmp_path, "c", ["new.example.com"])
    certificates.look()
    assert certificates.find(None) is before
    certificates.look()
    assert certificates.find(None).names == ("new.example.com",)
    assert certificates.stand_for("new.example.com") and not certificates.stand_for("old.example.com")
    context = certificates.context
    certificates.look()
    assert certificates.context is context
    assert [event["event"] for event in events] == [logs.CERTIFICATE_LOADED] * 2


def test_half_a_change_is_not_loaded(tmp_path: Path, events: list[EventDict]) -> None:
    """The key is there a moment before its certificate: no word about it, and no look at it."""
    pair = make_pair(tmp_path, "c", NAMES)
    certificates = Certificates([pair])
    old = pair.certificate.read_bytes()
    make_pair(tmp_path, "c", NAMES)
    new = pair.certificate.read_bytes()
    pair.certificate.write_bytes(old)
    certificates.look()
    pair.certificate.write_bytes(new)
    certificates.look()
    certificates.look()
    assert [event["event"] for event in events] == [logs.CERTIFICATE_LOADED] * 2


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_change_keeps_the_old_certificate_and_says_so_once(
    damage: str, tmp_path: Path, events: list[EventDict]
) -> None:
    pair = make_pair(tmp_path, "c", NAMES)
    other = make_pair(tmp_path, "other", ["other.example.com"])
    certificates = Certificates([pair, other])
    before = certificates.find(None)
    inflict, sentence = DAMAGE[damage]
    inflict(pair)
    make_pair(tmp_path, "other", ["mended.example.com"])
    for _ in range(5):
        certificates.look()
    assert certificates.find(None) is before
    assert certificates.stand_for("mended.example.com")
    said = [event for event in events if event["event"] == logs.CERTIFICATE_NOT_LOADED]
    assert len(said) == 1
    assert re.search(sentence, said[0]["error"])
    if pair.key.is_dir():
        pair.key.rmdir()
    make_pair(tmp_path, "c", NAMES)
    certificates.look()
    certificates.look()
    assert certificates.find(None) is not before


def test_a_link_that_leads_elsewhere_is_a_change(tmp_path: Path) -> None:
    """As certbot and Kubernetes do it."""
    for name in ["one", "two"]:
        (tmp_path / name).mkdir()
        make_pair(tmp_path / name, "c", [f"{name}.example.com"])
    live = tmp_path / "live"
    live.symlink_to("one")
    certificates = Certificates([Pair(live / "c.pem", live / "c.key")])
    live.unlink()
    live.symlink_to("two")
    certificates.look()
    certificates.look()
    assert certificates.stand_for("two.example.com")


async def test_it_looks_by_itself(tmp_path: Path) -> None:
    certificates = Certificates([make_pair(tmp_path, "c", NAMES)])
    looked = asyncio.Event()
    certificates.look = looked.set  # type: ignore[method-assign]
    watching = tasks.spawn(certificates.watch(interval_s=0.001), name="watch")
    await looked.wait()
    await tasks.cancel_and_wait(watching)


@pytest.mark.parametrize(
    ("days", "words"),
    [
        (15, ""),
        (13, r"^the certificate .*c\.pem expires on 2.* UTC: renew it$"),
        (-1, r"^the certificate .*c\.pem expired on 2.* UTC: clients refuse it$"),
    ],
)
def test_an_end_that_is_near_is_told(days: float, words: str, tmp_path: Path, events: list[EventDict]) -> None:
    pair = make_pair(tmp_path, "c", NAMES, days=days)
    Certificates([pair])
    said = [event["error"] for event in events if event["event"] == logs.CERTIFICATE_EXPIRES]
    assert len(said) == bool(words)
    assert all(re.search(words, sentence) for sentence in said)


def test_the_moment_of_expiry(tmp_path: Path) -> None:
    loaded = load(make_pair(tmp_path, "c", NAMES))
    at = datetime(2027, 1, 31, tzinfo=UTC)
    certificate = Certificate(loaded.path, loaded.context, loaded.names, at)
    assert "expired on 2027-01-31 00:00 UTC" in certificate.caution(at)
    assert "expires on 2027-01-31" in certificate.caution(at - timedelta(seconds=1))
    assert "expires on" in certificate.caution(at - timedelta(days=14))
    assert certificate.caution(at - timedelta(days=14, seconds=1)) == ""
