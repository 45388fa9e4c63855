"""Fixtures: real S3 servers, each started once per test process. A plugin, as `hatchvm.testing.api_fixtures` is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hatchvm.testing.s3 import ceph, rclone
from hatchvm.testing.s3.places import BUCKET
from hatchvm.testing.s3.server import S3Server


@pytest.fixture(scope="session")
def ceph_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    if lacking := ceph.missing():
        pytest.skip(f"{', '.join(lacking)}: not installed; as root, scripts/test-servers does it")
    with ceph.running(tmp_path_factory.mktemp("ceph")) as server:
        server.make_bucket(BUCKET)
        yield server


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with rclone.running(tmp_path_factory.mktemp("rclone")) as server:
        server.make_bucket(BUCKET)
        yield server
