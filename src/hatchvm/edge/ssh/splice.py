"""Bytes between two sockets, both ways, without passing through this process's memory.

Each way moves what has arrived through a pipe (`splice(2)`): on loopback that costs half the CPU time of copying. A way
takes a pipe for the moment it needs one, so an idle connection owns none; one whose sink is full keeps its pipe, with
what is in it, and stops reading its source until the sink has taken everything. No more than a pipe is ever kept.

An end of stream is passed on as one, each way by itself. A source that breaks, or a sink that breaks before its own way
has ended, ends everything with a reset: whoever is left must not take half a stream for a whole one.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import Callable
from typing import Final

from hatchvm.edge.ssh.hangups import Hangups

_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_LARGE_BYTES: Final = 1024 * 1024
_LARGE_PIPES: Final = 16
#: With this option a close resets the connection.
_RESET: Final = b"\x01\x00\x00\x00\x00\x00\x00\x00"


class Pipe:
    """A non-blocking pipe of `size` bytes. Raises OSError if there is none to have."""

    __slots__ = ("out", "size", "to")

    def __init__(self, size: int | None) -> None:
        """`size`: None for the kernel's default. A size that an unprivileged user may not have is not insisted on."""
        self.out, self.to = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        if size is not None:
            with contextlib.suppress(OSError):
                fcntl.fcntl(self.to, fcntl.F_SETPIPE_SZ, size)
        self.size = fcntl.fcntl(self.to, fcntl.F_GETPIPE_SZ)

    def close(self) -> None:
        os.close(self.out)
        os.close(self.to)


class Pipes:
    """Pipes for whoever moves bytes right now: a few large ones, small ones when many connections are stuck."""

    def __init__(self) -> None:
        self._free: list[Pipe] = []
        self.lent = 0

    def take(self) -> Pipe:
        """An empty pipe. Raises OSError if no descriptor is left for one."""
        pipe = self._free.pop() if self._free else Pipe(_LARGE_BYTES if self.lent < _LARGE_PIPES else None)
        self.lent += 1
        return pipe

    def give(self, pipe: Pipe, *, empty: bool) -> None:
        self.lent -= 1
        if empty and (pipe.size >= _LARGE_BYTES or not self._free):
            self._free.append(pipe)
        else:
            pipe.close()

    def close(self) -> None:
        while self._free:
            self._free.pop().close()


class Splice:
    """Two connected non-blocking sockets. It owns them until it has called `ended`."""

    __slots__ = ("_back", "_ended", "_forth", "hangups", "moved", "pipes")

    def __init__(
        self,
        ends: tuple[socket.socket, socket.socket],
        pipes: Pipes,
        hangups: Hangups,
        *,
        moved: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        """`moved` is called whenever bytes have arrived, `ended` once, when both sockets are closed."""
        self.pipes = pipes
        self.hangups = hangups
        self.moved = moved
        self._ended = ended
        self._forth = _Way(self, ends[0], ends[1])
        self._back = _Way(self, ends[1], ends[0])
        self._forth.listen()
        self._back.listen()

    def give_back(self) -> None:
        """Move nothing more and close the second socket; the first stays open and is the caller's again."""
        self._stop()
        self._forth.sink.close()

    def way_over(self) -> None:
        """A way has passed on its end of stream."""
        if self._forth.over and self._back.over:
            self.end(reset=False)

    def sink_broke(self, way: _Way) -> None:
        """What the other side said before it broke is still passed on; its own end is what ends everything."""
        other = self._back if way is self._forth else self._forth
        if other.over:
            self.end(reset=False)
        else:
            other.last = True

    def end(self, *, reset: bool) -> None:
        """Close both sockets."""
        self._stop()
        for way in (self._forth, self._back):
            if reset:
                way.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            way.source.close()
        self._ended()

    def _stop(self) -> None:
        self._forth.stop()
        self._back.stop()


class _Way:
    """One direction. `over`: nothing goes this way any more. `last`: the way back is dead, this one's end ends all."""

    __slots__ = ("_left", "_loop", "_pipe", "_splice", "last", "over", "sink", "source")

    def __init__(self, splice: Splice, source: socket.socket, sink: socket.socket) -> None:
        self._splice = splice
        self._loop = asyncio.get_running_loop()
        self._pipe: Pipe | None = None
        self._left = 0
        self.source = source
        self.sink = sink
        self.over = False
        self.last = False

    def listen(self) -> None:
        self._loop.add_reader(self.source.fileno(), self._readable)

    def stop(self) -> None:
        self._loop.remove_reader(self.source.fileno())
        self._loop.remove_writer(self.sink.fileno())
        self._splice.hangups.leave(self.source)
        self._give_pipe()

    def _readable(self) -> None:
        try:
            pipe = self._pipe = self._splice.pipes.take()
            self._left = os.splice(self.source.fileno(), pipe.to, pipe.size, flags=_FLAGS)
        except (BlockingIOError, InterruptedError):
            self._give_pipe()
        except OSError:
            self._splice.end(reset=True)
        else:
            if not self._left:
                self._end_of_stream()
                return
            self._splice.moved()
            if not self._push():
                self._loop.remove_reader(self.source.fileno())
                self._loop.add_writer(self.sink.fileno(), self._writable)

    def _writable(self) -> None:
        if self._push() and not self.over:
            self._loop.remove_writer(self.sink.fileno())
            self.listen()

    def _push(self) -> bool:
        """True unless the sink is full."""
        assert self._pipe is not None
        try:
            while self._left:
                self._left -= os.splice(self._pipe.out, self.sink.fileno(), self._left, flags=_FLAGS)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            self._break()
            return True
        self._give_pipe()
        return True

    def _end_of_stream(self) -> None:
        if self.last:
            self._splice.end(reset=True)
            return
        self._give_pipe()
        try:
            self.sink.shutdown(socket.SHUT_WR)
        except OSError:
            self._break()
            return
        self._rest()
        self._splice.way_over()

    def _break(self) -> None:
        """The sink takes nothing any more."""
        self._rest()
        self._splice.sink_broke(self)

    def _rest(self) -> None:
        """Nothing more goes this way; the source may still break."""
        self.stop()
        self.over = True
        self._splice.hangups.watch(self.source, self._broken)

    def _broken(self) -> None:
        self._splice.end(reset=True)

    def _give_pipe(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            self._splice.pipes.give(pipe, empty=not self._left)
