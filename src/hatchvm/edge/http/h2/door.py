"""Finds out which HTTP a new client speaks, then steps aside: HTTP/1 pays for it once per connection.

Over TLS the handshake has settled it (ALPN). In clear text an HTTP/2 client begins with a preface that no HTTP/1
request can begin with ("prior knowledge"; RFC 9113 has dropped the upgrade from HTTP/1.1).
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

from hatchvm.edge.http.connection import ClientConnection, House
from hatchvm.edge.http.h2.connection import H2Connection

_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Door(asyncio.Protocol):
    """A connection before its first bytes. Until they are here it is looked after as a silent HTTP/1 client."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._plain = ClientConnection(house)
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._first = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        tls = transport.get_extra_info("ssl_object")
        if tls is None:
            self._plain.connection_made(transport)
        elif tls.selected_alpn_protocol() == "h2":
            self._become_h2()
        else:
            self._transport.set_protocol(self._plain)
            self._plain.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._first += data
        if self._first.startswith(_PREFACE):
            connection = self._become_h2()
            self._plain.connection_lost(None)
            connection.data_received(self._first)
        elif not _PREFACE.startswith(self._first):
            self._become_plain()

    def eof_received(self) -> bool:
        self._become_plain()
        return self._plain.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._plain.connection_lost(exc)

    def pause_writing(self) -> None:
        self._plain.pause_writing()

    def resume_writing(self) -> None:
        self._plain.resume_writing()

    def _become_plain(self) -> None:
        self._transport.set_protocol(self._plain)
        if self._first:
            self._plain.data_received(self._first)

    def _become_h2(self) -> H2Connection:
        connection = H2Connection(self._house)
        self._transport.set_protocol(connection)
        connection.connection_made(self._transport)
        return connection
