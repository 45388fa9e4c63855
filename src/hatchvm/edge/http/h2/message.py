"""Reads HTTP/1.1 messages that our own relay wrote: well-formed by construction, so only their framing is looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

_EMPTY: Final = (b"204", b"304")

#: (lower-case name, value without surrounding blanks)
Fields: TypeAlias = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Head:
    """A start line and its fields. `interim`: a head of the final answer follows. `last`: there is no body."""

    start: bytes
    fields: Fields
    interim: bool = False
    last: bool = False


@dataclass(frozen=True, slots=True)
class Data:
    """Some bytes of the body, at least one."""

    data: bytes


@dataclass(frozen=True, slots=True)
class End:
    """The message is complete."""

    trailers: Fields = field(default_factory=list)


Part: TypeAlias = Head | Data | End


class MessageReader:
    """One message: a request, or (`answer`) an answer with the interim ones before it. `bodiless`: it answers a
    HEAD, and so has no body."""

    def __init__(self, *, answer: bool, bodiless: bool = False) -> None:
        self.done = False
        self._answer = answer
        self._bodiless = bodiless
        self._until_close = False
        self._held = b""
        self._left = 0
        self._trailers: Fields = []
        # Each reader takes what it can and returns the rest; None if it needs more than that.
        self._read: Callable[[bytes, list[Part]], bytes | None] = self._head

    def feed(self, data: bytes) -> list[Part]:
        parts: list[Part] = []
        rest: bytes | None = self._held + data
        self._held = b""
        while rest and not self.done:
            data, rest = rest, self._read(rest, parts)
            if rest is None:
                self._held = data
        return parts

    def eof(self) -> list[Part]:
        """The connection has ended, and with it a body that has no other end."""
        if self.done or not self._until_close:
            return []
        self.done = True
        return [End()]

    def _head(self, data: bytes, parts: list[Part]) -> bytes | None:
        head, end, rest = data.partition(b"\r\n\r\n")
        if not end:
            return None
        start, *lines = head.split(b"\r\n")
        fields = [_field(line) for line in lines]
        status = start[9:12] if self._answer else b""
        if status.startswith(b"1"):
            parts.append(Head(start, fields, interim=True))
            return rest
        last = self._bodiless or status in _EMPTY or not self._frame(dict(fields))
        parts.append(Head(start, fields, last=last))
        if last:
            self._finish(parts)
        return rest

    def _frame(self, fields: dict[bytes, bytes]) -> bool:
        """Choose the reader of the body; False if there is none."""
        if b"transfer-encoding" in fields:
            self._read = self._size
        elif b"content-length" in fields:
            self._left = int(fields[b"content-length"])
            self._read = self._sized
            return self._left > 0
        else:
            self._until_close = self._answer
            self._read = self._rest
            return self._answer
        return True

    def _sized(self, data: bytes, parts: list[Part]) -> bytes:
        rest = self._payload(data, parts)
        if not self._left:
            self._finish(parts)
        return rest

    def _rest(self, data: bytes, parts: list[Part]) -> bytes:
        parts.append(Data(data))
        return b""

    def _size(self, data: bytes, parts: list[Part]) -> bytes | None:
        line, end, rest = data.partition(b"\r\n")
        if not end:
            return None
        self._left = int(line.partition(b";")[0], 16)
        self._read = self._chunk if self._left else self._trailer
        return rest

    def _chunk(self, data: bytes, parts: list[Part]) -> bytes:
        rest = self._payload(data, parts)
        if not self._left:
            self._read = self._chunk_end
        return rest

    def _chunk_end(self, data: bytes, parts: list[Part]) -> bytes | None:
        if len(data) < 2:
            return None
        self._read = self._size
        return data[2:]

    def _trailer(self, data: bytes, parts: list[Part]) -> bytes | None:
        line, end, rest = data.partition(b"\r\n")
        if not end:
            return None
        if line:
            self._trailers.append(_field(line))
        else:
            self._finish(parts)
        return rest

    def _payload(self, data: bytes, parts: list[Part]) -> bytes:
        taken = data[: self._left]
        self._left -= len(taken)
        parts.append(Data(taken))
        return data[len(taken) :]

    def _finish(self, parts: list[Part]) -> None:
        self.done = True
        parts.append(End(self._trailers))


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, _, value = line.partition(b":")
    return name.lower(), value.strip(b" \t")
