"""Everything asked of S3 but bulk reads: botocore, one request a method, blocking; failures are raised as they come.

Nothing is tried again here: `store` does that, and sees cancellation while it waits. Checksums are those of the
snapshot format; the ones that botocore adds by default break servers that are not Amazon's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from botocore.config import Config
from botocore.session import Session

from hatchvm.base.units import MIB

CONNECTIONS: Final = 16
CONNECT_S: Final = 5.0
READ_S: Final = 30.0

#: What a body that may be broken off is cut into.
_CHUNK: Final = MIB // 4
_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class Place:
    """Where a bucket is and who asks. `endpoint`: http(s) URL, None for Amazon's own.

    Without keys botocore looks for some: environment, files, the instance's role. `path_style`: the bucket is the first
    segment of the path and not a name in DNS. `prefix`: goes before every key; empty, or ends with a slash.
    """

    bucket: str
    endpoint: str | None = None
    region: str | None = None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    path_style: bool = False
    prefix: str = ""


class Found(NamedTuple):
    """An object in the bucket; `name` is its key with the prefix. `modified_at` to the second, as every answer has."""

    name: str
    size: int
    modified_at: datetime


class Body:
    """Bytes as the file that botocore reads a request's body from; reading fails once `abandoned` is set."""

    def __init__(self, data: bytes | memoryview, abandoned: threading.Event) -> None:
        self._data = memoryview(data)
        self._abandoned = abandoned
        self._position = 0

    def __len__(self) -> int:
        return len(self._data)

    def read(self, size: int = -1) -> memoryview:
        """More than `size` bytes: the transport asks for 16 KiB at a time, which costs half a CPU second a gigabyte."""
        if self._abandoned.is_set():
            raise OSError("nobody wants this upload any more")
        chunk = self._data[self._position : self._position + (max(size, _CHUNK) if size >= 0 else len(self))]
        self._position += len(chunk)
        return chunk

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = offset + (0, self._position, len(self))[whence]
        return self._position

    def tell(self) -> int:
        return self._position


class Control:
    """One bucket. Every method may be called from any thread."""

    def __init__(self, place: Place, session: Session) -> None:
        _silence()
        self._bucket = place.bucket
        config = Config(
            signature_version="s3v4",
            s3={
                "addressing_style": "path" if place.path_style else "virtual",
                # Over TLS the transport protects the body; over plain HTTP its digest is part of the signature.
                "payload_signing_enabled": (place.endpoint or "").startswith("http:"),
            },
            max_pool_connections=CONNECTIONS,
            connect_timeout=CONNECT_S,
            read_timeout=READ_S,
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        self._client: Any = session.create_client(
            "s3",
            region_name=place.region,
            endpoint_url=place.endpoint,
            aws_access_key_id=place.access_key,
            aws_secret_access_key=place.secret_key,
            config=config,
        )

    def put(self, name: str, body: bytes | Body, *, if_absent: bool) -> None:
        condition = {"IfNoneMatch": "*"} if if_absent else {}
        self._client.put_object(Bucket=self._bucket, Key=name, Body=body, **condition)

    def info(self, name: str) -> Found:
        answer = self._client.head_object(Bucket=self._bucket, Key=name)
        return Found(name, answer["ContentLength"], _to_the_second(answer["LastModified"]))

    def page(self, prefix: str, token: str | None) -> tuple[list[Found], str | None]:
        """Up to a thousand objects whose names begin with `prefix`, in order, and what to ask the next page with."""
        more = {"ContinuationToken": token} if token else {}
        answer = self._client.list_objects_v2(Bucket=self._bucket, Prefix=prefix, MaxKeys=_PAGE, **more)
        found = [Found(o["Key"], o["Size"], _to_the_second(o["LastModified"])) for o in answer.get("Contents", ())]
        return found, answer.get("NextContinuationToken")

    def delete(self, name: str) -> None:
        self._client.delete_object(Bucket=self._bucket, Key=name)

    def presign(self, name: str, expires_s: int) -> str:
        """A URL that reads the object, whole or by ranges, without credentials."""
        params = {"Bucket": self._bucket, "Key": name}
        url: str = self._client.generate_presigned_url("get_object", Params=params, ExpiresIn=expires_s)
        return url

    def begin(self, name: str) -> str:
        """Start an upload in parts; its id."""
        upload: str = self._client.create_multipart_upload(Bucket=self._bucket, Key=name)["UploadId"]
        return upload

    def part(self, name: str, upload: str, number: int, body: Body) -> str:
        """Store part `number`, from 1; its tag."""
        answer = self._client.upload_part(Bucket=self._bucket, Key=name, UploadId=upload, PartNumber=number, Body=body)
        tag: str = answer["ETag"]
        return tag

    def complete(self, name: str, upload: str, tags: Sequence[str]) -> None:
        """Make one object of the parts."""
        parts = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
        self._client.complete_multipart_upload(
            Bucket=self._bucket, Key=name, UploadId=upload, MultipartUpload={"Parts": parts}
        )

    def abort(self, name: str, upload: str) -> None:
        self._client.abort_multipart_upload(Bucket=self._bucket, Key=name, UploadId=upload)


def _to_the_second(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(microsecond=0)


def _silence() -> None:
    """Below errors, these log signed URLs and what signatures are made of; what matters is in what they raise."""
    for name in ("botocore", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
