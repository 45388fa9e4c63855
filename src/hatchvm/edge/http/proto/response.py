"""A response's head: read strictly, and written anew for the client."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from hatchvm.edge.http.proto.fields import CHUNKED, RESPONSE_FIELDS, Malformed, Use, split_head
from hatchvm.edge.http.proto.request import Request

_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: .*)?")
_SWITCHING: Final = 101


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What the relay knows of a response. `head` lacks the client's `Connection` line and the blank line."""

    status: int
    head: bytes
    length: int | None  # bytes of body that follow; CHUNKED; None: until the guest closes
    keep_alive: bool  # the guest's connection can carry another request

    @property
    def chunked(self) -> bool:
        return self.length == CHUNKED

    @property
    def interim(self) -> bool:
        return self.status < 200 and self.status != _SWITCHING

    @property
    def switching(self) -> bool:
        """The guest speaks another protocol from here on."""
        return self.status == _SWITCHING


def parse_response(head: bytes, request: Request) -> Response:
    """Read a head given without its closing blank line; `request` is what it answers. Raises Malformed."""
    lines = split_head(head)
    match = _STATUS_LINE.fullmatch(lines[0])
    if not match:
        raise Malformed("malformed status line")
    status = int(match[2])
    found = RESPONSE_FIELDS.read(lines[1:])
    options = found.options()
    length = found.length()
    keep_alive = b"close" not in options and (match[1] == b"1" or b"keep-alive" in options)
    lines = [b"HTTP/1.1" + lines[0][8:], *found.kept]
    if status < 200 or status == 204:
        length, declared = 0, None  # such answers have no body, whatever they declare (RFC 9110, 8.6)
    else:
        declared = length
    if declared == CHUNKED and not request.old:
        lines.append(b"Transfer-Encoding: chunked")
    elif declared is not None and declared != CHUNKED:
        lines.append(b"Content-Length: %d" % declared)
    if status == _SWITCHING:
        if not request.upgrade or Use.UPGRADE not in found.values:
            raise Malformed("an upgrade nobody asked for")
        lines += [b"Upgrade: " + found.values[Use.UPGRADE], b"Connection: Upgrade"]
    if request.method == b"HEAD" or status == 304:
        length = 0
    return Response(status=status, head=b"\r\n".join(lines) + b"\r\n", length=length, keep_alive=keep_alive)
