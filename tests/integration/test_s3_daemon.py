"""A daemon whose configuration names a bucket: what it builds, and what it says at its start."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hatchvm.server.config import load
from hatchvm.server.daemon import _say_what_is_missing
from hatchvm.server.vmm import qemu
from hatchvm.server.wiring import build
from hatchvm.testing.s3.places import BUCKET
from hatchvm.testing.s3.server import S3Server

pytest_plugins = ["hatchvm.testing.s3.fixtures"]


async def said_at_start(server: S3Server, folder: Path, monkeypatch: pytest.MonkeyPatch, **other: str) -> str:
    variables = {
        "HATCH_DATA_DIR": str(folder / "data"),
        "HATCH_CACHE_DIR": str(folder / "cache"),
        "HATCH_ACCEL": "tcg",
        "HATCH_S3_BUCKET": BUCKET,
        "HATCH_S3_ENDPOINT": server.endpoint,
        "HATCH_S3_ACCESS_KEY": server.access_key,
        "HATCH_S3_SECRET_KEY": server.secret_key,
        "HATCH_S3_PREFIX": "daemon",
    }
    for name, value in (variables | other).items():
        monkeypatch.setenv(name, value)
    lines: list[str] = []
    built = build(load(), qemu(load()))
    try:
        await built.store.open()
        await _say_what_is_missing(built, lines.append)
    finally:
        await built.store.close()
        built.lock.close()
    return "\n".join(lines)


@pytest.fixture(autouse=True)
def _with_qemu() -> None:
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("without QEMU a daemon says only that it is missing")


async def test_a_store_that_keeps_every_promise_is_not_talked_about(
    ceph_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await said_at_start(ceph_server, tmp_path, monkeypatch) == ""


async def test_a_store_without_conditional_writes_is_one_sentence(
    rclone_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = await said_at_start(rclone_server, tmp_path, monkeypatch)
    assert said.startswith("Take care: the object store ignores conditional writes")
    assert "\n" not in said


@pytest.mark.parametrize("variable", ["HATCH_S3_BUCKET", "HATCH_S3_SECRET_KEY"])
async def test_what_is_wrong_is_said_by_the_name_of_its_variable(
    ceph_server: S3Server, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = await said_at_start(ceph_server, tmp_path, monkeypatch, **{variable: "wrong"})
    assert variable in said
    assert said.endswith("see: hatchvm doctor")
