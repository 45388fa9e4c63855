"""Connections from the host to a guest's vsock ports, as Firecracker offers them: a Unix socket and a line of talk."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from hatchvm.base import sockets


async def connect(path: Path, port: int) -> socket.socket:
    """A stream to the guest's `port`. Raises OSError (ConnectionRefusedError too) if nobody listens there."""
    loop = asyncio.get_running_loop()
    sock = await sockets.connect(path)
    try:
        await loop.sock_sendall(sock, b"CONNECT %d\n" % port)
        await _accepted(loop, sock)
    except BaseException:
        sock.close()
        raise
    return sock


async def _accepted(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    """Read `OK <port>` and not a byte more: what follows is the guest's."""
    line = b""
    while not line.endswith(b"\n"):
        byte = await loop.sock_recv(sock, 1)
        if not byte or len(line) > 32:
            raise ConnectionRefusedError("nobody listens on the guest's vsock port")
        line += byte
    if not line.startswith(b"OK "):
        raise ConnectionRefusedError("nobody listens on the guest's vsock port")
