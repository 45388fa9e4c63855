"""Field lines of a head: what a relay must know of them, and which it may pass on.

Written for strictness first: whatever could be read in two ways is refused, because the guest behind the proxy may
read it the other way. Then for speed: control bytes are found by one `translate`, a name is judged once and
remembered, and a line nobody here cares about is copied as it came.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

_END: Final = b"\r\n\r\n"
#: A head may not be longer, its blank line included.
_MAX_HEAD_BYTES: Final = 64 * 1024
TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

#: How many heads each way are remembered with what was read in them, and how long one may be.
REMEMBERED: Final = 1024
REMEMBERED_BYTES: Final = 2048

#: What stands before the first colon of each line but the first.
_NAMES: Final = re.compile(rb"\r\n([^:\r]*):")
_CONTROLS: Final = bytes(set(range(32)) - set(b"\t\r\n")) + b"\x7f"
_CONTROLS_AND_BREAKS: Final = _CONTROLS + b"\r\n"
_MAX_REMEMBERED_NAMES: Final = 4096
_MAX_REMEMBERED_BYTES: Final = 64
_MAX_LENGTH_DIGITS: Final = 18


class Malformed(Exception):
    """A message that is not understood, or could be understood in two ways."""

    def __init__(self, sentence: str, *, status: int = 400) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.status = status


#: What is done with a field line: one of these three, or the name under which its value concerns the relay.
KEEP: Final = ""  # copied as it came
DROP: Final = "drop"  # meant for this hop only, or not to be believed
REFUSE: Final = "refuse"  # never in a message that means well
HOST: Final = "host"
LENGTH: Final = "content-length"
CODING: Final = "transfer-encoding"
CONNECTION: Final = "connection"
UPGRADE: Final = "upgrade"
TE: Final = "te"
REQUEST_ID: Final = "x-request-id"

_LISTS: Final = frozenset({CONNECTION, UPGRADE, TE, REQUEST_ID})

_HOP_BY_HOP: Final = {
    b"content-length": LENGTH,
    b"transfer-encoding": CODING,
    b"connection": CONNECTION,
    b"upgrade": UPGRADE,
    b"te": TE,
    b"keep-alive": DROP,
    b"http2-settings": DROP,
    b"proxy-connection": DROP,
    b"proxy-authenticate": DROP,
    b"proxy-authorization": DROP,
}
#: Only the proxy says who the client is; `x-forwarded-*` is dropped by prefix.
_IDENTITY: Final = {b"forwarded": DROP, b"x-real-ip": DROP}
_FORBIDDEN_IN_TRAILERS: Final = (
    b"host",
    b"content-encoding",
    b"content-type",
    b"content-range",
    b"authorization",
    b"trailer",
    *_IDENTITY,
)
#: Fields that no `Connection` header may remove: the message would change its meaning or its addressee.
_NEVER_NAMED: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection"})
_NO_OPTIONS: Final[frozenset[bytes]] = frozenset()
_PERSISTENCE: Final = frozenset({b"close", b"keep-alive"})


class Found:
    """What the field lines of one head said: lines to pass on, and the values of those that concern the relay."""

    __slots__ = ("kept", "values")

    def __init__(self, kept: list[bytes], values: dict[str, bytes]) -> None:
        self.kept = kept
        self.values = values

    def options(self) -> frozenset[bytes]:
        """The options of `Connection`, lower case; the fields they name are taken out of `kept`."""
        value = self.values.get(CONNECTION)
        if value is None:
            return _NO_OPTIONS
        options = _options(value)
        if not options <= _PERSISTENCE:
            self.kept = [line for line in self.kept if line.partition(b":")[0].lower() not in options]
        return options

    def length(self) -> int | None:
        """The body's length in bytes, None if not given, `CHUNKED` if it is chunked."""
        coding, length = self.values.get(CODING), self.values.get(LENGTH)
        if coding is not None:
            if length is not None:
                raise Malformed("both Content-Length and Transfer-Encoding")
            # Codings are case-insensitive by the book; a guest that compares exactly would see no body here.
            if coding != b"chunked":
                raise Malformed("Transfer-Encoding must be exactly chunked")
            return CHUNKED
        if length is None:
            return None
        if not length.isdigit() or len(length) > _MAX_LENGTH_DIGITS:
            raise Malformed("malformed Content-Length")
        return int(length)


@lru_cache(maxsize=256)
def _options(value: bytes) -> frozenset[bytes]:
    options = frozenset(option for part in value.lower().split(b",") if (option := part.strip(b" \t")))
    if not all(map(TOKEN.fullmatch, options)):
        raise Malformed("malformed Connection header")
    if options & _NEVER_NAMED:
        raise Malformed("the Connection header names a field that belongs to the message")
    return options


#: Stands for a length that only the body itself tells.
CHUNKED: Final = -1


class FieldTable:
    """Which names matter in one kind of head. Remembers its verdict on each spelling it has seen."""

    def __init__(self, uses: Mapping[bytes, str], *, dropped_prefix: bytes | None = None) -> None:
        self._uses = uses
        self._dropped_prefix = dropped_prefix
        self._verdicts: dict[bytes, str] = {}

    def read(self, head: bytes, lines: list[bytes]) -> Found:
        """Judge every line of a head but its first. `lines`: what `split_head` made of it. Raises Malformed."""
        names = _NAMES.findall(head)
        if len(names) != len(lines) - 1:
            raise Malformed("a header line without a colon")
        uses = list(map(self._verdicts.get, names))
        if None in uses:
            uses = list(map(self._verdict, names))
        kept = lines[1:]
        values: dict[str, bytes] = {}
        matters = [at for at, use in enumerate(uses) if use]
        for at in matters:
            use, name = uses[at], names[at]
            assert use is not None
            if use == DROP:
                continue
            if use == REFUSE:
                raise Malformed(f"header {name.decode()} is not allowed here")
            value = kept[at][len(name) + 1 :].strip(b" \t")
            if use not in values:
                values[use] = value
            elif use in _LISTS:
                values[use] += b"," + value
            else:
                raise Malformed(f"more than one {name.decode()} header")
        for at in reversed(matters):
            del kept[at]
        return Found(kept, values)

    def check(self, line: bytes) -> None:
        """Raise Malformed for a single line that is none, or is refused."""
        name, colon, _ = line.partition(b":")
        if not colon:
            raise Malformed("a header line without a colon")
        if self._verdict(name) == REFUSE:
            raise Malformed(f"header {name.decode()} is not allowed here")

    def _verdict(self, name: bytes) -> str:
        use = self._verdicts.get(name)
        return self._judge(name) if use is None else use

    def _judge(self, name: bytes) -> str:
        if not TOKEN.fullmatch(name):
            raise Malformed("malformed header name")
        use = self._use(name.lower())
        if len(name) <= _MAX_REMEMBERED_BYTES:
            if len(self._verdicts) >= _MAX_REMEMBERED_NAMES:
                self._verdicts.clear()
            self._verdicts[name] = use
        return use

    def _use(self, lower: bytes) -> str:
        # Guests with a CGI heritage read `a_b` as `a-b`, so a spelling with underscores must not slip past.
        folded = lower.replace(b"_", b"-")
        if self._dropped_prefix and folded.startswith(self._dropped_prefix):
            return DROP
        use = self._uses.get(folded, KEEP)
        if folded == lower or use in (KEEP, DROP):
            return use
        return DROP if use == REQUEST_ID else REFUSE


REQUEST_FIELDS: Final = FieldTable(
    {**_HOP_BY_HOP, **_IDENTITY, b"host": HOST, b"x-request-id": REQUEST_ID},
    dropped_prefix=b"x-forwarded-",
)
RESPONSE_FIELDS: Final = FieldTable(_HOP_BY_HOP)
TRAILER_FIELDS: Final = FieldTable(dict.fromkeys((*_HOP_BY_HOP, *_FORBIDDEN_IN_TRAILERS), REFUSE))


def take_head(data: bytes, known: int, *, what: str) -> tuple[bytes | None, bytes]:
    """(the head without its blank line, what follows it), or (None, `data`) if the head is not whole yet.

    `known`: how many of the bytes were seen before, in vain. Raises Malformed (431, or 414 if its
    first line already is) if it is too large.
    """
    end = data.find(_END, known - 3 if known > 3 else 0)
    if (end + 4 if end >= 0 else len(data)) > _MAX_HEAD_BYTES:
        raise Malformed(f"the {what} is too large", status=431 if b"\r\n" in data[:_MAX_HEAD_BYTES] else 414)
    if end < 0:
        return None, data
    return data[:end], data[end + 4 :]


def refuse_unfinished(data: bytes, known: int) -> None:
    """Raise Malformed as soon as it is certain that no end can mend a head: its sender may never send one."""
    fresh = data[max(0, known - 1) :]
    refuse_controls(fresh)
    if fresh.count(b"\n") != fresh.count(b"\r\n") + (known > 0 and fresh.startswith(b"\n")):
        raise Malformed("a bare CR or LF in the head")


def refuse_controls(data: bytes) -> None:
    """Raise Malformed if `data` holds a control byte other than TAB, CR and LF."""
    if len(data.translate(None, _CONTROLS)) != len(data):
        raise Malformed("a control character in the head")


def split_head(head: bytes) -> list[bytes]:
    """The lines of a head given without its closing blank line. Raises Malformed for controls, bare CR and bare LF."""
    lines = head.split(b"\r\n")
    # One pass takes out all controls and line ends: more than the pairs that parted the lines is too much.
    if len(head.translate(None, _CONTROLS_AND_BREAKS)) != len(head) - 2 * (len(lines) - 1):
        refuse_controls(head)
        raise Malformed("a bare CR or LF in the head")
    return lines
