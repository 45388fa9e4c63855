"""Heads and trailers from HTTP/2 to HTTP/1.1 and back (RFC 9113, 8). Pure.

What comes from a peer is checked here for what HTTP/2 forbids and for whatever could break out of its line. The rest
(methods, hosts, which fields a request may have) is judged by the relay's own parser, as for everybody.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hatchvm.edge.http.h2.message import Fields, Head

_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_METHOD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PATH: Final = re.compile(rb"/[\x21-\x7e]*")
_SCHEME: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*")
_BREAKING: Final = re.compile(rb"[\0\r\n]")
_CONNECTION_FIELDS: Final = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
)
_EXPECT_BODY: Final = (b"POST", b"PUT", b"PATCH")
LAST_CHUNK: Final = b"0\r\n"


class Malformed(Exception):
    """What HTTP/2 forbids. Its stream must be reset with PROTOCOL_ERROR (RFC 9113, 8.1.1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHead:
    """A client's request as an HTTP/1.1 head, its blank line included. `chunked`: its body must be sent so."""

    data: bytes
    method: bytes
    chunked: bool


def request_head(headers: Iterable[tuple[bytes, bytes]], *, ended: bool) -> RequestHead:
    """`headers` as they came; `ended`: no body follows. The exchange is to be the only one on its connection."""
    pseudo, fields = _split(headers, known={b":method", b":scheme", b":path", b":authority"})
    method = pseudo.get(b":method", b"")
    host = _host(pseudo, fields)
    target = _target(method, pseudo)
    lengths = [value for name, value in fields if name == b"content-length"]
    if len(lengths) > 1 or (ended and lengths and lengths[0] != b"0"):
        raise Malformed("content-length and body disagree")
    lines = [method + b" " + target + b" HTTP/1.1"]
    if host is not None:
        lines.append(b"host: " + host)
    lines += [name + b": " + value for name, value in fields if name not in (b"host", b"cookie")]
    crumbs = [value for name, value in fields if name == b"cookie"]
    if crumbs:
        lines.append(b"cookie: " + b"; ".join(crumbs))
    chunked = not ended and not lengths
    if chunked:
        lines.append(b"transfer-encoding: chunked")
    elif not lengths and method in _EXPECT_BODY:
        lines.append(b"content-length: 0")
    lines.append(b"connection: close\r\n\r\n")
    return RequestHead(data=b"\r\n".join(lines), method=method, chunked=chunked)


def trailer_section(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Trailers as the end of a chunked body, after its last chunk."""
    _, fields = _split(headers, known=set())
    return b"".join(name + b": " + value + b"\r\n" for name, value in fields) + b"\r\n"


def answer_fields(head: Head) -> Fields:
    """The relay's answer for an HTTP/2 client."""
    return [(b":status", head.start[9:12]), *(field for field in head.fields if field[0] not in _CONNECTION_FIELDS)]


def request_fields(head: Head) -> Fields:
    """The relay's request for an HTTP/2 guest."""
    method, path, _ = head.start.split(b" ")
    authority = [(b":authority", value) for name, value in head.fields if name == b"host"]
    dropped = _CONNECTION_FIELDS | {b"host"}
    return [
        (b":method", method),
        (b":scheme", b"http"),
        (b":path", path),
        *authority,
        *(field for field in head.fields if field[0] not in dropped),
    ]


def answer_head(headers: Iterable[tuple[bytes, bytes]], *, ended: bool) -> bytes:
    """A guest's answer as an HTTP/1.1 head with its blank line. It is chunked unless it has `ended` already, so that
    trailers can follow; a length it declares was for HTTP/2 to check."""
    pseudo, fields = _split(headers, known={b":status"})
    status = pseudo.get(b":status", b"")
    if len(status) != 3 or not status.isdigit():
        raise Malformed("malformed :status")
    lines = [b"HTTP/1.1 " + status + b" "]
    lines += [name + b": " + value for name, value in fields if name != b"content-length"]
    if not status.startswith(b"1"):
        lines.append(b"content-length: 0" if ended else b"transfer-encoding: chunked")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _split(
    headers: Iterable[tuple[bytes, bytes]], *, known: set[bytes]
) -> tuple[dict[bytes, bytes], list[tuple[bytes, bytes]]]:
    """Pseudo-header fields, all of them `known` and none twice, and the others in their order."""
    pseudo: dict[bytes, bytes] = {}
    fields: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        if _BREAKING.search(value) or value != value.strip(b" \t"):
            raise Malformed("a value with a line break or with blanks around it")
        if name.startswith(b":"):
            if fields or name in pseudo or name not in known:
                raise Malformed("a pseudo-header field where it does not belong")
            pseudo[name] = value
            continue
        if not _NAME.fullmatch(name):
            raise Malformed("malformed field name")
        if name in _CONNECTION_FIELDS or (name == b"te" and value.lower() != b"trailers"):
            raise Malformed("a field that speaks of an HTTP/1.1 connection")
        fields.append((name, value))
    return pseudo, fields


def _host(pseudo: dict[bytes, bytes], fields: list[tuple[bytes, bytes]]) -> bytes | None:
    authority = pseudo.get(b":authority")
    hosts = [value for name, value in fields if name == b"host"]
    if len(hosts) > 1 or (hosts and authority is not None and hosts[0].lower() != authority.lower()):
        raise Malformed(":authority and host disagree")
    return authority if authority is not None else hosts[0] if hosts else None


def _target(method: bytes, pseudo: dict[bytes, bytes]) -> bytes:
    if not _METHOD.fullmatch(method):
        raise Malformed("malformed :method")
    if method == b"CONNECT":
        if b":path" in pseudo or b":scheme" in pseudo or not _PATH.fullmatch(b"/" + pseudo.get(b":authority", b" ")):
            raise Malformed("malformed CONNECT")
        return pseudo[b":authority"]
    if not _SCHEME.fullmatch(pseudo.get(b":scheme", b"")):
        raise Malformed("malformed :scheme")
    path = pseudo.get(b":path", b"")
    if not _PATH.fullmatch(path) and not (path == b"*" and method == b"OPTIONS"):
        raise Malformed("malformed :path")
    return path
