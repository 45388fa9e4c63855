"""What an SSH client is told when there is no guest to talk to.

First a line, which RFC 4253 (4.2) allows before the identification string: for whoever looks at the raw connection, and
for clients that show it. OpenSSH shows it only when asked to be verbose, so an identification and a disconnect message
(11.1) follow, before any key exchange and therefore in plain text (6): that one every client shows.
"""

from __future__ import annotations

import math
import struct
from typing import Final

from hatchvm.base.errors import HatchError

_SSH_MSG_DISCONNECT: Final = 1
_SERVICE_NOT_AVAILABLE: Final = 7
_IDENTIFICATION: Final = b"SSH-2.0-Hatch\r\n"
_BLOCK_BYTES: Final = 8
_MIN_PADDING_BYTES: Final = 4
#: A line with its end may have 255 bytes, as an identification string.
_MAX_LINE_BYTES: Final = 253


def sentence_of(error: HatchError) -> str:
    """The error's sentence, with advice when to come back."""
    if error.retry_after_s is None:
        return error.message
    return f"{error.message}; try again in {max(1, math.ceil(error.retry_after_s))} s"


def farewell(sentence: str) -> bytes:
    """All that is sent to a client before its connection ends. What is not printable ASCII becomes `?`."""
    line = "".join(char if " " <= char <= "~" else "?" for char in f"hatch: {sentence}").encode()[:_MAX_LINE_BYTES]
    return line + b"\r\n" + _IDENTIFICATION + _disconnect(line)


def _disconnect(description: bytes) -> bytes:
    payload = struct.pack(">BII", _SSH_MSG_DISCONNECT, _SERVICE_NOT_AVAILABLE, len(description)) + description
    payload += struct.pack(">I", 0)  # no language tag
    padding = _BLOCK_BYTES - (5 + len(payload)) % _BLOCK_BYTES
    if padding < _MIN_PADDING_BYTES:
        padding += _BLOCK_BYTES
    return struct.pack(">IB", 1 + len(payload) + padding, padding) + payload + bytes(padding)
