"""A request's head: read strictly, and written anew for the guest."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from hatchvm.edge.http.proto.fields import (
    CHUNKED,
    HOST,
    REMEMBERED,
    REMEMBERED_BYTES,
    REQUEST_FIELDS,
    REQUEST_ID,
    TE,
    TOKEN,
    UPGRADE,
    Found,
    Malformed,
    split_head,
)

#: RFC 9110, 9.2.2: repeating such a request asks for nothing more than sending it once.
_IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
_VERSION: Final = re.compile(rb"HTTP/[0-9]\.[0-9]")
#: RFC 9113 has removed this upgrade; a guest that took it would speak what no relay of HTTP/1.1 understands.
_HTTP_2: Final = frozenset({b"h2c", b"h2"})
_SLASH: Final = ord("/")
#: gRPC proper; gRPC-Web is made for HTTP/1.1.
_GRPC: Final = re.compile(rb"\r\n(?i:content-type): *application/grpc(?:[\r;+ ]|\Z)")
_TARGET: Final = re.compile(rb"[\x21-\x7e]+")
_ID: Final = re.compile(rb"[\x21-\x7e]{1,128}")
_START_LINE: Final = re.compile(rb"(%b) (%b) (HTTP/1\.[01])" % (TOKEN.pattern, _TARGET.pattern))
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE)
_AUTHORITY: Final = re.compile(rb"https?://([^/?#]+)", re.IGNORECASE)
_HOST: Final = re.compile(rb"[A-Za-z0-9._~%!$&'()*+;=:\[\]-]*")


class Fields:
    """What the relay knows of a request's field lines. Never changed: requests share it."""

    __slots__ = ("block", "grpc", "host", "id", "keep_alive", "length", "upgrade")

    def __init__(
        self, host: bytes, block: bytes, length: int, *, request_id: bytes, keep_alive: bool, upgrade: bool
    ) -> None:
        self.host = host
        self.id = request_id
        self.block = block  # for the guest, from the end of the first line to that of the last
        self.length = length
        self.keep_alive = keep_alive
        self.upgrade = upgrade
        self.grpc = _GRPC.search(block) is not None


class Request:
    """What the relay knows of a request. `head` is ready for the guest but for the lines that tell who the client is,
    the request's id, and the blank line."""

    __slots__ = (
        "grpc",
        "head",
        "host",
        "id",
        "idempotent",
        "keep_alive",
        "length",
        "method",
        "old",
        "target",
        "upgrade",
    )

    def __init__(self, method: bytes, target: bytes, head: bytes, old: bool, fields: Fields) -> None:
        self.method = method
        self.target = target  # as the guest gets it
        self.head = head
        self.idempotent = method in _IDEMPOTENT
        self.old = old  # HTTP/1.0: no chunks, no interim answers
        self.host = fields.host  # as the client wrote it; empty if there was none
        self.id = fields.id  # which its client gave it; empty if it gave none, or an odd one
        self.length = fields.length  # bytes of body; CHUNKED if it tells its length itself
        self.keep_alive = fields.keep_alive
        self.upgrade = fields.upgrade  # a 101 is welcome
        self.grpc = fields.grpc  # only servers that speak HTTP/2 understand it


def parse_request(head: bytes) -> Request:
    """Read a head given without its closing blank line. Raises Malformed."""
    end = head.find(b"\r\n")
    line, block = (head, b"") if end < 0 else (head[:end], head[end:])
    match = _START_LINE.fullmatch(line)
    if not match:
        raise _blame(line)
    method, target, version = match.groups()
    if method == b"CONNECT":
        raise Malformed("CONNECT is not supported", status=501)
    old = version == b"HTTP/1.0"
    fields = _remembered(block, old) if len(block) <= REMEMBERED_BYTES else _fields(block, old)
    if target[0] != _SLASH:
        authority = _AUTHORITY.match(target)
        if authority and old and not fields.host:  # RFC 9112, 3.2.2: it need not say so twice
            return parse_request(line + b"\r\nHost: " + authority[1] + block)
        target = _path(method, target, fields.host)
    return Request(method, target, method + b" " + target + b" HTTP/1.1" + fields.block, old, fields)


def _fields(block: bytes, old: bool) -> Fields:
    """Read all of a head but its first line; `block` begins with that line's end."""
    lines = split_head(block)
    found = REQUEST_FIELDS.read(block, lines)
    values = found.values
    named = values.pop(HOST, None)
    host = named or b""
    if not _HOST.fullmatch(host):
        raise Malformed("malformed Host header")
    options = found.options()
    length = found.length()
    if old and length == CHUNKED:
        raise Malformed("Transfer-Encoding in an HTTP/1.0 request")
    protocols = [name for part in values.pop(UPGRADE, b"").split(b",") if (name := part.strip(b" \t"))]
    if not _HTTP_2.isdisjoint(map(bytes.lower, protocols)) or old or b"upgrade" not in options:
        protocols = []
    if old:  # RFC 9110, 10.1.1: whoever speaks it does not know what it asks for
        found.kept = [line for line in found.kept if not line.lower().startswith(b"expect:")]
    request_id = values.pop(REQUEST_ID, b"")
    if not _ID.fullmatch(request_id):
        request_id = b""
    lines = [b"" if named is None else b"\r\nHost: " + host, *found.kept]
    if values or protocols:
        lines += _hop_lines(found, length, protocols)
    lines.append(b"X-Forwarded-Host: " + host + b"\r\n")
    return Fields(
        host,
        b"\r\n".join(lines),
        length or 0,
        request_id=request_id,
        keep_alive=b"close" not in options and (not old or b"keep-alive" in options),
        upgrade=bool(protocols),
    )


#: The requests of one client differ in their first lines, and little else.
_remembered: Final = lru_cache(maxsize=REMEMBERED)(_fields)


def _blame(line: bytes) -> Malformed:
    """What is wrong with a request line."""
    parts = line.split(b" ")
    if len(parts) != 3:
        return Malformed("malformed request line")
    if not TOKEN.fullmatch(parts[0]):
        return Malformed("malformed method")
    if not _TARGET.fullmatch(parts[1]):
        return Malformed("malformed request target")
    status = 505 if _VERSION.fullmatch(parts[2]) else 400
    return Malformed("this proxy speaks HTTP/1.1 and HTTP/1.0", status=status)


def _path(method: bytes, target: bytes, host: bytes) -> bytes:
    """What a guest expects of a target that is no path: a path as it came, without scheme and authority."""
    if target == b"*" and method == b"OPTIONS":
        return target
    absolute = _ABSOLUTE.fullmatch(target)
    if not absolute:
        raise Malformed("malformed request target")
    authority, path = absolute.groups()
    if authority.lower() != host.lower():
        raise Malformed("the request target and the Host header disagree")
    if not path and method == b"OPTIONS":
        return b"*"
    return bytes(path) if path.startswith(b"/") else b"/" + path


def _hop_lines(found: Found, length: int | None, protocols: list[bytes]) -> list[bytes]:
    """What this hop says for itself: framing in one spelling only, and what the next hop may do."""
    lines: list[bytes] = []
    options: list[bytes] = []
    if length == CHUNKED:
        lines.append(b"Transfer-Encoding: chunked")
    elif length is not None:
        lines.append(b"Content-Length: %d" % length)
    if protocols:
        lines.append(b"Upgrade: " + b", ".join(protocols))
        options.append(b"Upgrade")
    if any(
        part.partition(b";")[0].strip(b" \t") == b"trailers" for part in found.values.get(TE, b"").lower().split(b",")
    ):
        lines.append(b"TE: trailers")
        options.append(b"TE")
    if options:
        lines.append(b"Connection: " + b", ".join(options))
    return lines
