"""What a client is told instead of a session, read back as RFC 4253 says."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.base.errors import HatchError, Unavailable, Upstream
from hatchvm.edge.ssh.farewell import farewell, sentence_of


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (Unavailable("failed to wake vm", detail="secret", retry_after_s=4), "failed to wake vm; try again in 4 s"),
        (Unavailable("failed to wake vm", retry_after_s=0.2), "failed to wake vm; try again in 1 s"),
        (Upstream("vm not found"), "vm not found"),
    ],
)
def test_the_sentence_says_when_to_come_back(error: HatchError, sentence: str) -> None:
    assert sentence_of(error) == sentence


def test_a_line_an_identification_and_a_disconnect_message() -> None:
    line, identification, packet = farewell("failed to wake vm; try again in 4 s").split(b"\r\n", 2)
    assert line == b"hatch: failed to wake vm; try again in 4 s"
    assert identification == b"SSH-2.0-Hatch"
    assert _disconnect(packet) == line


@given(st.text(max_size=40).map(lambda text: text * 10))
def test_whatever_the_sentence_the_form_holds(sentence: str) -> None:
    line, identification, packet = farewell(sentence).split(b"\r\n", 2)
    assert len(line) <= 253
    assert all(0x20 <= byte <= 0x7E for byte in line)
    assert not line.startswith(b"SSH-")
    assert identification.startswith(b"SSH-2.0-")
    assert _disconnect(packet) == line


def _disconnect(packet: bytes) -> bytes:
    """The description in a whole unencrypted packet: RFC 4253, 6 and 11.1."""
    length, padding = struct.unpack_from(">IB", packet)
    assert len(packet) == length + 4 >= 16
    assert len(packet) % 8 == 0
    assert 4 <= padding <= 255
    payload = packet[5:-padding]
    kind, reason, size = struct.unpack_from(">BII", payload)
    assert (kind, reason) == (1, 7)
    assert payload[9 + size :] == struct.pack(">I", 0)
    return payload[9 : 9 + size]
