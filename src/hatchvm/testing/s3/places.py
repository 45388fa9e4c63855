"""Stores in a test server's bucket."""

from __future__ import annotations

import secrets
from typing import Final

from hatchvm.objects.s3.control import Place
from hatchvm.objects.s3.store import S3Store
from hatchvm.testing.s3.server import S3Server

#: The fixtures make it.
BUCKET: Final = "hatch-tests"


def empty_store(server: S3Server, *, bucket: str = BUCKET) -> S3Store:
    """Nothing else lies under its prefix. It tries again at once."""
    return S3Store(place(server, bucket=bucket, prefix=f"{secrets.token_hex(8)}/"), first_pause_s=0.001)


def place(server: S3Server, *, bucket: str = BUCKET, prefix: str = "") -> Place:
    """A bucket of `server`, asked with its keys."""
    return Place(
        bucket=bucket,
        endpoint=server.endpoint,
        region="us-east-1",
        access_key=server.access_key,
        secret_key=server.secret_key,
        path_style=True,
        prefix=prefix,
    )
