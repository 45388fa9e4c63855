"""The API of one Firecracker: HTTP over the Unix socket that it opens when it starts."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, Final

import httpx2

from hatchvm.base import sockets
from hatchvm.base.errors import HatchError, Unavailable
from hatchvm.vmm.firecracker.requests import Request

#: Between two tries to connect: it announces itself in no other way.
_LOOK_S: Final = 0.001
_ANSWER_S: Final = 10.0


class Refused(HatchError):
    """Firecracker did not do it; `detail` has its own words."""


class Gone(Unavailable):
    """The process has ended, or answers no more."""


class Api:
    """One connection. The socket may be deeper than a socket's path may be long: it is named through its folder."""

    def __init__(self, socket: Path) -> None:
        """Raises Gone if its folder is."""
        try:
            self._folder = os.open(socket.parent, os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY)
        except OSError as error:
            raise Gone("the VMM is gone", detail=repr(error)) from error
        # Reading the certificate authorities takes longer than a whole wake: this is no TLS.
        transport = httpx2.AsyncHTTPTransport(uds=f"/proc/self/fd/{self._folder}/{socket.name}", verify=False)
        self._http = httpx2.AsyncClient(transport=transport, base_url="http://localhost", trust_env=False)
        self._socket = socket

    async def opened(self) -> None:
        """Return when somebody listens at the socket. Whoever waits must also watch the process."""
        while True:
            try:
                (await sockets.connect(self._socket)).close()
            except (FileNotFoundError, ConnectionRefusedError):
                await asyncio.sleep(_LOOK_S)
            else:
                return

    async def send(self, request: Request, *, timeout_s: float = _ANSWER_S) -> dict[str, Any]:
        """What it answers. Raises Refused or Gone."""
        if self._folder < 0:
            raise Gone("the VMM is gone")
        body = dict(request.body) if request.method != "GET" else None
        try:
            answer = await self._http.request(request.method, request.path, json=body, timeout=timeout_s)
        except httpx2.TimeoutException as error:
            raise Gone("the VMM does not answer", detail=f"{request.path}: {error!r}") from error
        except (httpx2.HTTPError, OSError) as error:
            raise Gone("the VMM is gone", detail=f"{request.path}: {error!r}") from error
        content: dict[str, Any] = answer.json() if answer.content else {}
        if not answer.is_success:
            raise Refused("the VMM refused", detail=f"{request.path}: {content.get('fault_message', answer.text)}")
        return content

    async def close(self) -> None:
        """May be repeated."""
        if self._folder >= 0:
            await self._http.aclose()
            os.close(self._folder)
            self._folder = -1
