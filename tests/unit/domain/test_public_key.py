"""Reading SSH public keys that users paste."""

from __future__ import annotations

import base64
import contextlib
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.base.errors import Invalid
from hatchvm.domain.public_key import parse

ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g"


def line(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def made(kind: str, *fields: bytes) -> str:
    """A line whose blob is the kind and those fields."""
    blob = b"".join(struct.pack(">I", len(field)) + field for field in (kind.encode(), *fields))
    return f"{kind} {base64.b64encode(blob).decode()}"


def refusal(text: str) -> str:
    with pytest.raises(Invalid) as caught:
        parse(text)
    assert caught.value.message.startswith("public_key ")
    return caught.value.message


def test_what_a_pub_file_holds() -> None:
    key = parse(f"{ED25519} ann@laptop and more\n")
    assert (key.line, key.comment) == (ED25519, "ann@laptop and more")
    # As `ssh-keygen -l` prints it.
    assert key.fingerprint == "SHA256:Cvc6vF8KG/H+gjg3qhw7DX6mLHTdvJNCqzbP6CmXHcw"


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_ecdsa(curve: ec.EllipticCurve) -> None:
    text = line(ec.generate_private_key(curve))
    assert parse(text).line == text


def test_security_keys() -> None:
    point = b"\4" + bytes(64)
    for text in (
        made("sk-ssh-ed25519@openssh.com", bytes(32), b"ssh:"),
        made("sk-ecdsa-sha2-nistp256@openssh.com", b"nistp256", point, b"ssh:"),
    ):
        assert parse(text).line == text


def test_rsa_must_be_long_enough() -> None:
    def key(bits: int) -> str:
        return made("ssh-rsa", b"\1\0\1", b"\0" + ((1 << bits) - 1).to_bytes(bits // 8, "big"))

    assert parse(key(2048)).line == key(2048)
    assert refusal(key(1024)) == "public_key is an RSA key of 1024 bits; 2048 are the least"
    assert "damaged" in refusal(made("ssh-rsa", b"\1\0\1", b"\xff" * 256))  # a negative number
    assert "damaged" in refusal(made("ssh-rsa", b"\1\0\1"))


def test_a_private_key_is_refused_and_not_repeated() -> None:
    private = ed25519.Ed25519PrivateKey.generate()
    text = private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    sentence = refusal(text)
    assert sentence.startswith("public_key is a private key")
    assert not any(word in sentence for word in text.split() if len(word) > 10)


@pytest.mark.parametrize(
    ("text", "because"),
    [
        ("", "is empty"),
        ("hello", "must begin with one of ssh-ed25519"),
        (f"{ED25519}\n{ED25519}", "must be one line"),
        (f'command="true",no-pty {ED25519}', "options"),
        (f"from=10.0.0.0/8 {ED25519} ann", "options"),
        ("ssh-dss AAAA", "DSA"),
        ("ssh-ed25519-cert-v01@openssh.com AAAA", "certificate"),
        ("ssh-ed25519", "damaged"),
        (ED25519[:-4], "damaged"),
        (ED25519.replace("+", "-").replace("/", "_"), "damaged"),
        (ED25519.replace("ssh-ed25519", "ssh-rsa"), "damaged"),
        (made("ssh-ed25519", bytes(32), b"more"), "damaged"),
        (made("ecdsa-sha2-nistp256", b"nistp384", b"\4" + bytes(96)), "damaged"),
        (made("ecdsa-sha2-nistp256", b"nistp256", b"\2" + bytes(32)), "damaged"),
    ],
)
def test_what_is_refused(text: str, because: str) -> None:
    assert because in refusal(text)


@given(st.text())
def test_any_text_is_a_key_or_a_sentence(text: str) -> None:
    for candidate in (text, f"ssh-ed25519 {text}", f"ssh-rsa {text}"):
        with contextlib.suppress(Invalid):
            assert "\n" not in parse(candidate).line


@given(st.binary(max_size=80), st.sampled_from(["ssh-rsa", "ecdsa-sha2-nistp521", "sk-ssh-ed25519@openssh.com"]))
def test_any_bytes_are_a_key_or_a_sentence(blob: bytes, kind: str) -> None:
    head = struct.pack(">I", len(kind)) + kind.encode()
    with pytest.raises(Invalid):
        parse(f"{kind} {base64.b64encode(head + blob).decode()}")
