"""WebSocket frames (RFC 6455, 5.2) as far as the echo needs them: binary, whole, under 126 bytes, masked with zeros."""

from __future__ import annotations

from typing import Final

SWITCHED: Final = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n"
)
_WHOLE_BINARY: Final = 0x82
_MASKED: Final = 0x80
_MASKED_HEAD: Final = 6


def frame(payload: bytes) -> bytes:
    """As a server sends it."""
    return bytes((_WHOLE_BINARY, len(payload))) + payload


def masked(payload: bytes) -> bytes:
    """As a client sends it. A mask of zeros leaves the payload as it is."""
    return bytes((_WHOLE_BINARY, _MASKED | len(payload), 0, 0, 0, 0)) + payload


def unmasked(data: bytes) -> tuple[list[bytes], bytes]:
    """The payloads of a client's whole frames, and what is left of the data."""
    payloads, at = [], 0
    while len(data) >= at + _MASKED_HEAD:
        end = at + _MASKED_HEAD + (data[at + 1] & ~_MASKED)
        if len(data) < end:
            break
        payloads.append(data[at + _MASKED_HEAD : end])
        at = end
    return payloads, data[at:]
