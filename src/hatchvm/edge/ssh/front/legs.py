"""The two ends of a channel that is carried from a user's SSH connection to a guest's: shell, file, forwarded port.

What one leg receives, the other sends on. A leg is read only while the other one's channel and connection take more,
so no more than a window waits here. What arrives before the legs are joined is kept, and is one packet at most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import asyncssh


class Channel(Protocol):
    """What the channels of asyncssh have in common."""

    def is_closing(self) -> bool: ...

    def write(self, data: bytes, datatype: int | None = None) -> None: ...

    def write_eof(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...


C = TypeVar("C", bound=Channel)


class Trunk:
    """One SSH connection and the legs that stand on it. `full`: its socket takes no more for now."""

    def __init__(self) -> None:
        self.legs: set[Leg[Any]] = set()
        self.full = False

    def watch(self, connection: asyncssh.SSHServerConnection | asyncssh.SSHClientConnection) -> None:
        """Hear when the socket fills. asyncssh itself would go on and buffer all that a peer's windows allow."""
        for callback, full in (("pause_writing", True), ("resume_writing", False)):
            setattr(connection, callback, lambda full=full: self._fill(full))

    def _fill(self, full: bool) -> None:
        self.full = full
        for leg in list(self.legs):
            leg.heed()


class Leg(Generic[C]):
    """One end. `touch` is called whenever bytes arrive at it."""

    channel: C

    def __init__(self, trunk: Trunk, touch: Callable[[], None]) -> None:
        self._trunk = trunk
        self._touch = touch
        self._other: Leg[Any] | None = None
        self._full = False
        self._kept: list[tuple[bytes, int | None]] = []
        self._ended = False
        self.gone = False

    def join(self, other: Leg[Any]) -> None:
        """Carry everything between this end and `other`. Both have their channels."""
        self._other, other._other = other, self
        for one, two in ((self, other), (other, self)):
            one._hand_over(two)
        if self.gone or other.gone:
            (other if self.gone else self).part(None)

    def heed(self) -> None:
        """Let the other end be read while this one takes more, and only then."""
        if self._other is None:
            return
        if self._full or self._trunk.full:
            self._other.channel.pause_reading()
        else:
            self._other.channel.resume_reading()

    def send(self, data: bytes, datatype: int | None) -> None:
        """What the other end received."""
        if not self.channel.is_closing():
            self.channel.write(data, datatype)
        if self._full or self._trunk.full:
            self.heed()

    def fail(self, sentence: str) -> None:
        """End this end, telling whoever reads it why, where that is possible."""
        self.channel.close()

    def part(self, error: Exception | None) -> None:
        """The other end is gone: send what is left, then go too. `error`: the connection that it stood on broke."""
        self.channel.close()

    # -- asyncssh.SSHSession

    def connection_made(self, chan: C) -> None:
        self.channel = chan
        self._trunk.legs.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self._trunk.legs.discard(self)
        if self._other is not None:
            self._other.part(exc)

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self._touch()
        if self._other is None:
            self._kept.append((data, datatype))
            self.channel.pause_reading()
        else:
            self._other.send(data, datatype)

    def eof_received(self) -> bool:
        """True: the other direction stays open."""
        self._ended = True
        if self._other is not None:
            self._other.channel.write_eof()
        return True

    def pause_writing(self) -> None:
        self._full = True
        self.heed()

    def resume_writing(self) -> None:
        self._full = False
        self.heed()

    def _hand_over(self, other: Leg[Any]) -> None:
        """Give the other end what came before it was there, and let this one be read."""
        for data, datatype in self._kept:
            other.send(data, datatype)
        self._kept.clear()
        if self._ended:
            other.channel.write_eof()
        other.heed()


class PortLeg(Leg[Channel], asyncssh.SSHTCPSession[bytes], asyncssh.SSHUNIXSession[bytes]):
    """Either end of a forwarded port or socket."""

    _first: PortLeg | None = None

    def expect(self, first: PortLeg) -> None:
        """Join `first`, which has its channel, as soon as this one has one too."""
        self._first = first

    def connection_made(self, chan: Channel) -> None:
        super().connection_made(chan)
        if self._first is not None:
            self.join(self._first)
