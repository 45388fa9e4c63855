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
    TE,
    TOKEN,
    UPGRADE,
    Found,
    Malformed,
    split_head,
)

#: RFC 9110, 9.2.2: repeating such a request asks for nothing more than sending it once.
_IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
_TARGET: Final = re.compile(rb"[\x21-\x7e]+")
_START_LINE: Final = re.compile(rb"(%b) (%b) (HTTP/1\.[01])" % (TOKEN.pattern, _TARGET.pattern))
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#]*)(.*)", re.IGNORECASE)
_HOST: Final = re.compile(rb"[A-Za-z0-9._~%!$&'()*+;=:\[\]-]*")


class Request:
    """What the relay knows of a request, never changed. `head` is ready for the guest but for the lines that tell who
    the client is, and the blank line."""

    __slots__ = ("head", "host", "keep_alive", "length", "method", "old", "target", "upgrade")

    def __init__(
        self,
        method: bytes,
        target: bytes,
        host: bytes,
        head: bytes,
        length: int,
        *,
        keep_alive: bool,
        upgrade: bool,
        old: bool,
    ) -> None:
        self.method = method
        self.target = target  # as the guest gets it
        self.host = host  # as the client wrote it; empty if there was none
        self.head = head
        self.length = length  # bytes of body; CHUNKED if it tells its length itself
        self.keep_alive = keep_alive
        self.upgrade = upgrade  # a 101 is welcome
        self.old = old  # HTTP/1.0: no chunks, no interim answers

    @property
    def idempotent(self) -> bool:
        return self.method in _IDEMPOTENT


def parse_request(head: bytes) -> Request:
    """Read a head given without its closing blank line. Raises Malformed.

    Clients repeat themselves, byte by byte: the last heads are remembered.
    """
    return _remembered(head) if len(head) <= REMEMBERED_BYTES else _parse(head)


def _parse(head: bytes) -> Request:
    lines = split_head(head)
    method, target, version = _start_line(lines[0])
    found = REQUEST_FIELDS.read(head, lines)
    values = found.values
    named = values.pop(HOST, None)
    host = named or b""
    if not _HOST.fullmatch(host):
        raise Malformed("malformed Host header")
    options = found.options()
    length = found.length()
    old = version == b"HTTP/1.0"
    if old and length == CHUNKED:
        raise Malformed("Transfer-Encoding in an HTTP/1.0 request")
    upgrade = not old and b"upgrade" in options and UPGRADE in values
    target = _origin_form(method, target, host)
    lines = [method + b" " + target + b" HTTP/1.1"]
    if named is not None:
        lines.append(b"Host: " + host)
    lines += found.kept
    if values:
        lines += _hop_lines(found, length, upgrade=upgrade)
    lines.append(b"X-Forwarded-Host: " + host + b"\r\n")
    return Request(
        method,
        target,
        host,
        b"\r\n".join(lines),
        length or 0,
        keep_alive=b"close" not in options and (not old or b"keep-alive" in options),
        upgrade=upgrade,
        old=old,
    )


_remembered: Final = lru_cache(maxsize=REMEMBERED)(_parse)


def _start_line(line: bytes) -> tuple[bytes, bytes, bytes]:
    """Method, target and version."""
    match = _START_LINE.fullmatch(line)
    if not match:
        raise Malformed(_blame(line))
    method, target, version = match.groups()
    if method == b"CONNECT":
        raise Malformed("CONNECT is not supported", status=501)
    return method, target, version


def _blame(line: bytes) -> str:
    """What is wrong with a request line."""
    parts = line.split(b" ")
    if len(parts) != 3:
        return "malformed request line"
    if not TOKEN.fullmatch(parts[0]):
        return "malformed method"
    if not _TARGET.fullmatch(parts[1]):
        return "malformed request target"
    return "this proxy speaks HTTP/1.1 and HTTP/1.0"


def _origin_form(method: bytes, target: bytes, host: bytes) -> bytes:
    """The target as a guest expects it: a path as it came, without scheme and authority."""
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
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


def _hop_lines(found: Found, length: int | None, *, upgrade: bool) -> list[bytes]:
    """What this hop says for itself: framing in one spelling only, and what the next hop may do."""
    lines: list[bytes] = []
    options: list[bytes] = []
    if length == CHUNKED:
        lines.append(b"Transfer-Encoding: chunked")
    elif length is not None:
        lines.append(b"Content-Length: %d" % length)
    if upgrade:
        lines.append(b"Upgrade: " + found.values[UPGRADE])
        options.append(b"Upgrade")
    if b"trailers" in found.values.get(TE, b"").lower():
        lines.append(b"TE: trailers")
        options.append(b"TE")
    if options:
        lines.append(b"Connection: " + b", ".join(options))
    return lines
