"""Connections that break while nobody reads them: the event loop only watches what is read or written."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable


class Hangups:
    """Watches sockets for nothing but their end, in one epoll set that the loop watches in turn."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._loop.add_reader(self._epoll.fileno(), self._look)

    def watch(self, sock: socket.socket, broken: Callable[[], None]) -> None:
        """Call `broken` once when the connection has been reset, timed out, or ended both ways."""
        self._epoll.register(sock, 0)  # errors are told unasked
        self._watched[sock.fileno()] = broken

    def leave(self, sock: socket.socket) -> None:
        """Watch it no more; before it is closed. May be repeated."""
        if self._watched.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock)

    def close(self) -> None:
        """May be repeated."""
        if not self._epoll.closed:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def _look(self) -> None:
        for fd, _ in self._epoll.poll(0):
            broken = self._watched.pop(fd, None)
            if broken is not None:
                self._epoll.unregister(fd)
                broken()
