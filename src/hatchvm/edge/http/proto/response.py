"""A response's head: read strictly, and written anew for the client."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from hatchvm.edge.http.proto.fields import (
    CHUNKED,
    REMEMBERED,
    REMEMBERED_BYTES,
    RESPONSE_FIELDS,
    UPGRADE,
    Malformed,
    split_head,
)
from hatchvm.edge.http.proto.request import Request

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: .*)?")
#: The guest speaks another protocol from here on.
SWITCHING: Final = 101
_UPGRADE_REQUIRED: Final = 426


class Response:
    """What the relay knows of a response, never changed. `head` lacks the line `Connection` and the blank line."""

    __slots__ = ("head", "keep_alive", "length", "status")

    def __init__(self, status: int, head: bytes, length: int | None, *, keep_alive: bool) -> None:
        self.status = status
        self.head = head
        self.length = length  # bytes of body that follow; CHUNKED; None: until the guest closes
        self.keep_alive = keep_alive  # the guest's connection can carry another request


def parse_response(head: bytes, request: Request) -> Response:
    """Read a head given without its closing blank line; `request` is what it answers. Raises Malformed.

    Guests repeat themselves, as clients do: see `parse_request`.
    """
    parse = _remembered if len(head) <= REMEMBERED_BYTES else _parse
    return parse(head, request.method == b"HEAD", request.old, request.upgrade)


def _parse(head: bytes, bodiless: bool, old: bool, upgrade: bool) -> Response:
    lines = split_head(head)
    status_line = lines[0]
    match = _STATUS_LINE.fullmatch(status_line)
    if not match:
        raise Malformed("malformed status line")
    minor, code = match.groups()
    status = int(code)
    found = RESPONSE_FIELDS.read(head, lines)
    options = found.options()
    length = found.length()
    keep_alive = b"close" not in options and (minor == b"1" or (b"keep-alive" in options and length != CHUNKED))
    lines = [b"HTTP/1.1" + status_line[8:], *found.kept]
    if status < 200 or status == 204:
        length, declared = 0, None  # such answers have no body, whatever they declare (RFC 9110, 8.6)
    else:
        declared = length
    if declared == CHUNKED:
        if not old:
            lines.append(b"Transfer-Encoding: chunked")
    elif declared is not None:
        lines.append(b"Content-Length: %d" % declared)
    if status == SWITCHING:
        if not upgrade or UPGRADE not in found.values:
            raise Malformed("an upgrade nobody asked for")
        lines += [b"Upgrade: " + found.values[UPGRADE], b"Connection: Upgrade"]
    if status == _UPGRADE_REQUIRED and UPGRADE in found.values:
        lines += [b"Upgrade: " + found.values[UPGRADE], b"Connection: Upgrade"]
    if bodiless or status == 304:
        length = 0
    lines.append(b"")
    return Response(status, b"\r\n".join(lines), length, keep_alive=keep_alive)


_remembered: Final = lru_cache(maxsize=REMEMBERED)(_parse)
