"""The description of the API, for programs: what FastAPI derives, made to say what we really answer."""

from __future__ import annotations

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from hatchvm.api.answers import Problem

METHODS: Final = ("get", "post", "patch", "delete")
_OPEN_TAGS: Final = frozenset({"Health", "TLS"})
_ABOUT: Final = (
    "VMs that nobody uses are frozen into object storage; the next request brings them back. "
    'Every error is `{"error": "<sentence>"}`. Times are UTC. Send a key as `Authorization: Bearer <key>` or '
    "`X-API-Key: <key>`. `user_data` is accepted and never sent back."
)
_MEANING: Final = {
    400: "A field is missing, unknown, of the wrong type or out of range; the sentence names it",
    401: "No key, or not a valid one",
    404: "No such thing",
    409: "The present state forbids it, or the name is taken",
    413: "The body is larger than 1 MiB",
    503: "No capacity, or not now; `Retry-After` says when to come back, if that is known",
}
_PROBLEM: Final = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of `app`."""
    document = get_openapi(title="Hatch", version=app.version, description=_ABOUT, routes=app.routes)
    components = document["components"]
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    }
    schemas = components["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Problem"] = Problem.model_json_schema()
    for operations in document["paths"].values():
        for method, operation in operations.items():
            _complete(operation, method)
    return document


def _complete(operation: dict[str, Any], method: str) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    statuses = {503}
    if not _OPEN_TAGS & set(operation["tags"]):
        operation["security"] = [{"bearer": []}, {"header": []}]
        statuses |= {401}
    if "requestBody" in operation:
        statuses |= {400, 404, 413}
    parameters = operation.get("parameters", ())
    if parameters:
        statuses |= {404}
    if any(parameter["in"] == "query" for parameter in parameters):
        statuses |= {400}
    if method != "get":
        statuses |= {409}
    for status in sorted(statuses):
        responses[str(status)] = {"description": _MEANING[status], "content": _PROBLEM}
