"""Every error as `{"error": "<sentence>"}`, fit to show to a person."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from hatchvm.base.errors import HTTP_STATUS, HatchError, Kind

_log = logging.getLogger(__name__)

#: pydantic's error type -> our sentence; `{}` fields come from the error's context.
_SENTENCES: Final = {
    "missing": "is required",
    "extra_forbidden": "is not a known field",
    "int_type": "must be a whole number",
    "literal_error": "must be {expected}",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "string_unicode": "must be valid Unicode",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "too_long": "must have at most {max_length} entries",
    "value_error": "{error}",
}
_MAX_NAME_LENGTH: Final = 80
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


def install(app: FastAPI) -> None:
    """Teach `app` to answer every error in our form."""

    @app.exception_handler(HatchError)
    async def hatch_error(request: Request, error: HatchError) -> Response:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        return _problem(400, sentence_of(error.errors()))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return _problem(404, "not found")
        if error.status_code == 405:
            return _problem(405, "method not allowed", {"Allow": allowed_methods(app, request.url.path)})
        return _problem(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(ClientDisconnect)
    async def hung_up(request: Request, error: ClientDisconnect) -> Response:
        return _problem(400, "the client hung up")


def answer(error: HatchError, also: Mapping[str, Any] = _NOTHING) -> Response:
    """The answer to an error: its kind decides the status. `also`: what else the caller is told."""
    status = HTTP_STATUS[error.kind]
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.kind is Kind.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    if status == 500 or error.detail:
        level = logging.ERROR if status == 500 else logging.INFO
        _log.log(level, "request refused", extra={"error": error.message, "detail": error.detail})
    return _problem(status, error.message, headers, also)


def sentence_of(errors: Sequence[Mapping[str, Any]]) -> str:
    """`<field>: <sentence>` about the first error. Never quotes a value: it may be a secret."""
    first = errors[0]
    where = [str(part) for part in first["loc"][1:] if part != "[key]"]
    name = "".join(letter if letter.isprintable() else "?" for letter in ".".join(where)[:_MAX_NAME_LENGTH])
    sentence = _SENTENCES.get(first["type"], "is not valid").format_map(first.get("ctx", {}))
    return f"{name or first['loc'][0]}: {sentence}"


def allowed_methods(app: FastAPI, path: str) -> str:
    """Every method that some route has for `path`. Starlette only names those of the first route that fits."""
    methods: set[str] = set()
    for route in iter_route_contexts(app.routes):
        pattern = getattr(route, "path_regex", None)
        if pattern is not None and pattern.match(path):
            methods |= route.methods or set()
    return ", ".join(sorted(methods))


def _problem(
    status: int, sentence: str, headers: Mapping[str, str] | None = None, also: Mapping[str, Any] = _NOTHING
) -> Response:
    return JSONResponse({"error": sentence, **also}, status, headers=dict(headers or {}))
