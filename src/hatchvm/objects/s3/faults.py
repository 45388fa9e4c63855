"""From what botocore, urllib3 and S3 servers say to an error of ours, and whether to try again. Pure.

A server's text is never passed on: it may repeat keys, signatures or URLs that hold one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    TokenRetrievalError,
)
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from hatchvm.base.errors import Conflict, Exhausted, HatchError, NotFound, Unavailable, Unsupported

#: What the calls of `control` and `bulk` raise. ValueError: an answer that does not parse.
Foreign = (BotoCoreError, ClientError, ResponseParserError, HTTPError, OSError, ValueError)

READ: Final = "read"
WRITE: Final = "write"
LIST: Final = "list"
DELETE: Final = "delete"

_NO_KEY: Final = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, TokenRetrievalError)
_FULL: Final = {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"}
_REGION: Final = {
    "AuthorizationHeaderMalformed",
    "AuthorizationQueryParametersError",
    "IllegalLocationConstraintException",
    "PermanentRedirect",
    "TemporaryRedirect",
}
_AGAIN: Final = {"ConditionalRequestConflict", "OperationAborted", "RequestTimeout"}
_QUERY: Final = re.compile(r"\?[^\s\"'<>)]*")


class Refusal(ValueError):
    """A server's answer that is not what was asked for: its status, and S3's code or an empty string."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"{status} {code}")
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Fault:
    """How a request ended. `transient`: the same request may succeed a moment later."""

    error: HatchError
    transient: bool


def fault_of(error: Exception, *, verb: str, key: str, bucket: str) -> Fault:
    """`error` is one of `Foreign`; `verb`, `key` and `bucket` are what was asked."""
    if isinstance(error, ClientError):
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        error = Refusal(status, str(error.response.get("Error", {}).get("Code", "")))
    if isinstance(error, Refusal):
        return _refused(error.status, error.code, verb, key, bucket)
    detail = f"{verb} {key}: {type(error).__name__}: {_QUERY.sub('?…', str(error))}"
    if isinstance(error, _NO_KEY):
        text = "no keys for the object store; set HATCH_S3_ACCESS_KEY and HATCH_S3_SECRET_KEY, or give this host a role"
        return Fault(Unavailable(text, detail=detail), transient=False)
    if "CERTIFICATE_VERIFY_FAILED" in detail:
        text = "the object store's certificate is not trusted; name the file of its authority in AWS_CA_BUNDLE"
        return Fault(Unavailable(text, detail=detail), transient=False)
    text = "the object store does not answer; check HATCH_S3_ENDPOINT and the network"
    return Fault(Unavailable(text, detail=detail), transient=True)


def _refused(status: int, code: str, verb: str, key: str, bucket: str) -> Fault:
    detail = f"{verb} {key}: status {status} {code}".rstrip()
    permanent = _permanent(status, code, verb, key, bucket, detail)
    if permanent is not None:
        return Fault(permanent, transient=False)
    again = status >= 500 or status in (200, 206, 408, 429) or code in _AGAIN
    text = "the object store fails; look at its own log" if again else f"the object store refuses to {verb} objects"
    return Fault(Unavailable(text, detail=detail), transient=again)


def _permanent(status: int, code: str, verb: str, key: str, bucket: str, detail: str) -> HatchError | None:
    if code == "NoSuchBucket":
        return Unavailable(f"HATCH_S3_BUCKET: there is no bucket {bucket}; make it, or mend the name", detail=detail)
    if code in ("NoSuchKey", "NoSuchUpload") or (status == 404 and verb == READ):
        return NotFound(f"no object {key}")
    if status == 412:
        return Conflict("the object exists already")
    if status == 501:
        return Unsupported(f"the object store cannot {verb} objects in this way", detail=detail)
    if status == 507 or code in _FULL:
        return Exhausted("the object store is full", detail=detail)
    if code in _REGION or status in (301, 307):
        return Unavailable("HATCH_S3_REGION: the bucket is in another region; name that one", detail=detail)
    if code == "RequestTimeTooSkewed":
        return Unavailable("the object store finds this host's clock wrong; set the clock", detail=detail)
    if status in (401, 403):
        text = f"the object store forbids to {verb} objects in {bucket}; check HATCH_S3_ACCESS_KEY, HATCH_S3_SECRET_KEY"
        return Unavailable(f"{text} and what that key may do", detail=detail)
    return None
