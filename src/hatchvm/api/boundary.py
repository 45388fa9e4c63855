"""The request boundary: the one place of the API that catches everything.

Every answer gets an `X-Request-Id`; a bug becomes a 500 that says no more, and a log line that says the rest.
"""

from __future__ import annotations

import json
import logging
import secrets

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger(__name__)


class Boundary:
    """ASGI middleware, outermost of ours."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(8)
        started = False

        async def send_marked(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_marked)
        except Exception:
            extra = {"request_id": request_id, "method": scope["method"], "path": scope["path"]}
            _log.exception("request failed", extra=extra)
            if started:
                # Half an answer must not look like a whole one: the server cuts the connection.
                raise
            await _answer_500(send_marked)


async def _answer_500(send: Send) -> None:
    body = json.dumps({"error": "internal error"}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": body})
