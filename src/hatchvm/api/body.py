"""Request bodies: bounded before they are read, and JSON without two meanings."""

from __future__ import annotations

import json
from typing import Any, Final

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.types import Scope

from hatchvm.base.errors import Invalid
from hatchvm.base.units import MIB

MAX_BODY_BYTES: Final = MIB


class StrictRequest(Request):
    """A request whose body is at most 1 MiB and, where JSON is read, one object in strict JSON.

    Whatever the Content-Type says, the body is JSON: `curl -d` sends a form's type, and nothing here is guarded by
    cookies, so a lenient type opens no door.
    """

    def __init__(self, request: Request) -> None:
        super().__init__(_as_json(request.scope), request.receive)

    async def body(self) -> bytes:
        """The whole body. Raises HTTPException 413 as soon as it is known to be too long."""
        if not hasattr(self, "_body"):
            declared = self.headers.get("content-length", "")
            if declared.isdecimal() and int(declared[:20]) > MAX_BODY_BYTES:
                raise _too_large()
            chunks = bytearray()
            async for chunk in self.stream():
                chunks += chunk
                if len(chunks) > MAX_BODY_BYTES:
                    raise _too_large()
            self._body = bytes(chunks)
        return self._body

    async def json(self) -> Any:
        """The body as an object; no body is an empty one. Raises Invalid."""
        if not hasattr(self, "_json"):
            self._json = parse_object(await self.body() or b"{}")
        return self._json


def parse_object(raw: bytes) -> dict[str, Any]:
    """One JSON object in UTF-8, without duplicate fields, NaN or infinities. Raises Invalid."""
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise Invalid("body: must be UTF-8") from None
    except RecursionError:
        raise Invalid("body: is nested too deeply") from None
    except ValueError:
        raise Invalid("body: must be valid JSON") from None
    if not isinstance(value, dict):
        raise Invalid("body: must be a JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise Invalid("body: names a field twice")
    return fields


def _no_constant(name: str) -> None:
    raise Invalid(f"body: {name} is not a JSON number")


def _too_large() -> HTTPException:
    return HTTPException(413, "request body is larger than 1 MiB")


def _as_json(scope: Scope) -> Scope:
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    return {**scope, "headers": [*headers, (b"content-type", b"application/json")]}
