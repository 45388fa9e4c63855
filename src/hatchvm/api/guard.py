"""Who may call: a route class that wants a key before it looks at anything else of a request.

A route class and not a dependency, because FastAPI parses a body before it runs dependencies: a stranger must learn
nothing, not even that his JSON is broken.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi import Request, Response
from fastapi.routing import APIRoute

from hatchvm.api.body import StrictRequest
from hatchvm.api.context import context_of
from hatchvm.base.errors import Unauthenticated

#: Longer than any key; hashing or sending on more would be work for nothing.
_MAX_SECRET_LENGTH: Final = 512

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class KeyRoute(APIRoute):
    """A call for holders of a key; its body, if it has one, is strict JSON."""

    def get_route_handler(self) -> Handler:
        inner = super().get_route_handler()

        async def handle(request: Request) -> Response:
            secret = secret_of(request)
            if secret is None or not await context_of(request).verifier.verify(secret):
                raise Unauthenticated("missing or invalid API key")
            strict = StrictRequest(request)
            await strict.body()
            if self.body_field is not None:
                await strict.json()
            return await inner(strict)

        return handle


def secret_of(request: Request) -> str | None:
    """The key a request carries: `Authorization: Bearer k`, else `X-API-Key: k`."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    secret = value.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "").strip()
    return secret if 0 < len(secret) <= _MAX_SECRET_LENGTH else None
