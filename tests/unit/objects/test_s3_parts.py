"""The pure parts of the S3 store: what a failure means, when to try again, what is kept of an answer."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading

import pytest
import urllib3
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.base.errors import Conflict, Exhausted, HatchError, NotFound, Unavailable, Unsupported
from hatchvm.objects.s3.bulk import _cut_out
from hatchvm.objects.s3.control import Body, Place
from hatchvm.objects.s3.faults import DELETE, LIST, READ, WRITE, Fault, Refusal, fault_of
from hatchvm.objects.s3.requests import pause_s

SIGNED = "http://h:1/b/k?X-Amz-Credential=AKIA%2Fx&X-Amz-Signature=0123abcd"


def fault(error: Exception, verb: str = READ) -> Fault:
    return fault_of(error, verb=verb, key="a/k", bucket="my-bucket")


def client_error(status: int, code: str) -> ClientError:
    answer = {"Error": {"Code": code, "Message": "with a secret"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "Operation")


@pytest.mark.parametrize(
    ("status", "code", "verb", "kind", "sentence", "transient"),
    [
        (404, "NoSuchKey", READ, NotFound, "no object a/k", False),
        (404, "404", READ, NotFound, "no object a/k", False),
        (404, "NoSuchBucket", READ, Unavailable, "HATCH_S3_BUCKET: there is no bucket my-bucket", False),
        (404, "NoSuchBucket", WRITE, Unavailable, "HATCH_S3_BUCKET: there is no bucket my-bucket", False),
        (404, "NoSuchUpload", WRITE, NotFound, "", False),
        (404, "", WRITE, Unavailable, "refuses to write", False),
        (405, "MethodNotAllowed", LIST, Unavailable, "refuses to list", False),
        (412, "PreconditionFailed", WRITE, Conflict, "exists already", False),
        (409, "ConditionalRequestConflict", WRITE, Unavailable, "", True),
        (400, "RequestTimeout", WRITE, Unavailable, "", True),
        (429, "", READ, Unavailable, "", True),
        (500, "InternalError", READ, Unavailable, "the object store fails", True),
        (503, "SlowDown", DELETE, Unavailable, "the object store fails", True),
        (200, "AnotherRange", READ, Unavailable, "", True),
        (501, "NotImplemented", WRITE, Unsupported, "", False),
        (507, "", WRITE, Exhausted, "the object store is full", False),
        (403, "QuotaExceeded", WRITE, Exhausted, "the object store is full", False),
        (
            403,
            "AccessDenied",
            DELETE,
            Unavailable,
            "forbids to delete.*HATCH_S3_ACCESS_KEY, HATCH_S3_SECRET_KEY",
            False,
        ),
        (403, "", READ, Unavailable, "forbids to read objects in my-bucket", False),
        (403, "RequestTimeTooSkewed", READ, Unavailable, "clock", False),
        (301, "PermanentRedirect", READ, Unavailable, "HATCH_S3_REGION: ", False),
        (400, "AuthorizationHeaderMalformed", READ, Unavailable, "HATCH_S3_REGION: ", False),
        (400, "KeyTooLongError", WRITE, Unavailable, "refuses to write", False),
    ],
)
def test_every_refusal_is_one_of_our_errors(
    status: int, code: str, verb: str, kind: type[HatchError], sentence: str, transient: bool
) -> None:
    for error in (client_error(status, code), Refusal(status, code)):
        found = fault(error, verb)
        assert type(found.error) is kind
        assert found.transient is transient
        assert re.search(sentence, str(found.error))


@pytest.mark.parametrize(
    ("error", "transient", "sentence"),
    [
        (EndpointConnectionError(endpoint_url=SIGNED), True, "HATCH_S3_ENDPOINT"),
        (ConnectionResetError("reset"), True, "HATCH_S3_ENDPOINT"),
        (ValueError(f"cannot parse {SIGNED}"), True, "HATCH_S3_ENDPOINT"),
        (urllib3.exceptions.LocationParseError(SIGNED), True, "HATCH_S3_ENDPOINT"),
        (urllib3.exceptions.SSLError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"), False, "AWS_CA_BUNDLE"),
        (NoCredentialsError(), False, "set HATCH_S3_ACCESS_KEY and HATCH_S3_SECRET_KEY"),
    ],
)
def test_a_broken_transport_is_unavailable_and_shows_no_signature(
    error: Exception, transient: bool, sentence: str
) -> None:
    found = fault(error)
    assert isinstance(found.error, Unavailable)
    assert found.transient is transient
    assert sentence in str(found.error)
    assert "a/k" in found.error.detail
    assert "X-Amz" not in str(found.error) + found.error.detail


def test_what_a_server_wrote_is_not_passed_on() -> None:
    found = fault(client_error(403, "SignatureDoesNotMatch")).error
    assert "secret" not in str(found) + found.detail


@given(st.integers(1, 100), st.floats(0.001, 5), st.floats(0, 1))
def test_pauses_grow_to_a_limit(attempt: int, first_s: float, chance: float) -> None:
    pause = pause_s(attempt, first_s, chance)
    assert first_s / 2 <= pause <= 10
    assert pause_s(attempt, first_s, 0) <= pause <= pause_s(attempt + 1, first_s, 1)


@given(st.binary(max_size=2_000_000), st.integers(1, 1_500_000), st.booleans())
def test_a_body_reads_as_its_bytes(data: bytes, size: int, again: bool) -> None:
    body = Body(data, threading.Event())
    assert len(body) == len(data)
    for _ in range(1 + again):
        assert b"".join(iter(lambda: bytes(body.read(size)), b"")) == data
        assert body.tell() == body.seek(0, 2) == len(data)
        assert body.seek(0) == 0
    assert body.read() == data


def test_an_abandoned_body_cannot_be_read_further() -> None:
    abandoned = threading.Event()
    body = Body(bytes(1_000_000), abandoned)
    assert len(body.read(1)) < 1_000_000
    abandoned.set()
    with pytest.raises(OSError, match="nobody wants"):
        body.read(1)


RANGES = st.tuples(st.binary(max_size=600), st.integers(0, 700), st.none() | st.integers(1, 700))


def answer(status: int, body: bytes, content_range: str | None, *, lost: int = 0) -> urllib3.HTTPResponse:
    """`lost`: so many bytes at the end never arrive."""
    headers = {"Content-Length": str(len(body) + lost)} | ({"Content-Range": content_range} if content_range else {})
    return urllib3.HTTPResponse(io.BytesIO(body), status=status, headers=headers, preload_content=False)


@given(RANGES, st.sampled_from(["206", "200 with the range", "200 with the whole object"]))
def test_a_range_is_the_range_however_it_is_answered(asked: tuple[bytes, int, int | None], dialect: str) -> None:
    data, start, length = asked
    wanted = data[start : None if length is None else start + length]
    if dialect == "200 with the whole object":
        response = answer(200, data, None)
    elif not wanted:
        return  # a server that knows ranges says 416
    else:
        where = f"bytes {start}-{start + len(wanted) - 1}/{len(data)}"
        response = answer(int(dialect[:3]), wanted, where)
    assert _cut_out(response, start, length) == wanted


@given(RANGES, st.integers(1, 10))
def test_less_than_was_promised_is_never_taken_for_the_range(asked: tuple[bytes, int, int | None], lost: int) -> None:
    data, start, length = asked
    wanted = data[start : None if length is None else start + length]
    for shown, where in ((data, None), (wanted, f"bytes {start}-{start + len(wanted) - 1}/{len(data)}")):
        arrived = shown[:-lost]
        if wanted and (where or start + len(wanted) > len(arrived)):
            with pytest.raises(urllib3.exceptions.HTTPError):
                _cut_out(answer(200, arrived, where, lost=len(shown) - len(arrived)), start, length)


@pytest.mark.parametrize(
    ("status", "where"),
    [(206, None), (206, "bytes 6-15/100"), (200, "bytes 9-18/100"), (206, "lines 5-14/100"), (206, "bytes */100")],
)
def test_another_range_is_refused(status: int, where: str | None) -> None:
    with pytest.raises(Refusal, match="AnotherRange"):
        _cut_out(answer(status, b"0123456789", where), 5, 10)


def test_a_place_does_not_show_its_secret() -> None:
    assert "swordfish" not in repr(Place("b", access_key="k", secret_key="swordfish"))


def test_only_a_daemon_that_uses_s3_pays_for_it() -> None:
    loaded = "import sys, hatchvm.server.wiring; print('botocore' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout == "False\n"
    )
