"""The TLS port: accepts, and lets a connection through to its protocol when the handshake is done."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Final

from hatchvm.edge.http.tls.transport import TLSTransport

#: From the TCP connection to the end of the handshake.
HANDSHAKE_TIMEOUT_S: Final = 10.0


class TLSListener:
    """Start it once, close it once; closing leaves connections whose handshake is done to their protocols."""

    def __init__(
        self,
        context: ssl.SSLContext,
        factory: Callable[[], asyncio.Protocol],
        *,
        handshake_timeout_s: float = HANDSHAKE_TIMEOUT_S,
    ) -> None:
        self._context = context
        self._factory = factory
        self._handshake_timeout_s = handshake_timeout_s
        self._handshakes: set[TLSTransport] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int, *, backlog: int, shared: bool = False) -> int:
        """Listen; return the port, which the system chose if `port` is 0. Raises OSError if it is taken.

        `shared`: other processes of this user may listen there too.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accepted, host, port, backlog=backlog, reuse_port=shared or None)
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Stop listening, and cut handshakes under way."""
        if self._server:
            self._server.close()
        for handshake in list(self._handshakes):
            handshake.abort()

    def _accepted(self) -> TLSTransport:
        return TLSTransport(
            self._context, self._factory, self._handshakes, handshake_timeout_s=self._handshake_timeout_s
        )
