"""curl and wrk, unmodified, through the proxy to an ordinary web server."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Final

import pytest

from hatchvm.base import tasks
from hatchvm.testing.edge.web import MIB, Ran, WebStage, peak, reset_peak, run

LARGE: Final = (2048 if os.environ.get("HATCH_SOAK") else 256) * MIB
GROWTH: Final = 32 * MIB

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")


async def curl(*words: str | Path) -> Ran:
    ran = await run("curl", "--silent", "--show-error", "--fail", "--max-time", "110", *words)
    assert ran.status == 0, ran.err
    return ran


async def test_one_connection_serves_many_requests(web: WebStage) -> None:
    urls = [f"{web.url}/{number}" for number in range(20)]
    ran = await curl("--write-out", " %{http_code} %{num_connects}\n", *urls)
    assert ran.out.decode().split() == ["hello", "200", "1"] + ["hello", "200", "0"] * 19
    assert web.stage.gate.dials == 1


async def test_a_sleeping_vm_wakes(web: WebStage) -> None:
    web.stage.gate.asleep.add("vm-app")
    asking = tasks.spawn(curl(web.url + "/hello"), name="curl")
    await web.stage.gate.until_needed(1)
    web.stage.gate.wake.set()
    assert (await asking).out == b"hello"


async def test_http_1_0(web: WebStage) -> None:
    ran = await curl("--http1.0", "--include", web.url + "/hello")
    head, _, body = ran.out.partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    assert body == b"hello"


async def test_head(web: WebStage) -> None:
    ran = await curl("--head", f"{web.url}/bytes?12345", web.url + "/hello")
    assert b"content-length: 12345\r\n" in ran.out.lower()
    assert ran.out.count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_upload_that_asks_first(web: WebStage, tmp_path: Path, chunked: bool) -> None:
    data = bytes(range(256)) * 12_000
    (tmp_path / "data").write_bytes(data)
    framing = ("--header", "Transfer-Encoding: chunked") if chunked else ()
    asking = ("--header", "Expect: 100-continue", "--verbose", "--upload-file", tmp_path / "data")
    ran = await curl(*asking, *framing, web.url + "/receive")
    assert json.loads(ran.out) == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert "< HTTP/1.1 100 Continue" in ran.err


async def test_large_bodies_take_no_memory(web: WebStage, tmp_path: Path) -> None:
    sparse = tmp_path / "zeros"
    with sparse.open("wb") as file:
        file.truncate(LARGE)
    before = reset_peak()
    ran = await curl("--upload-file", sparse, web.url + "/receive")
    assert json.loads(ran.out)["size"] == LARGE
    got = await curl("--output", "/dev/null", "--write-out", "%{size_download}", f"{web.url}/bytes?{LARGE}")
    assert int(got.out) == LARGE
    assert peak() - before < GROWTH


async def test_an_hour_of_events(web: WebStage) -> None:
    """Silence shorter than the limit keeps the VM held; the stream goes on for as long as it lasts."""
    argv = ("curl", "--silent", "--no-buffer", "--noproxy", "*", web.url + "/events")
    child = await asyncio.create_subprocess_exec(*argv, stdout=PIPE)
    assert child.stdout
    for number in range(6):
        web.guest.events.put_nowait(str(number))
        assert await child.stdout.readuntil(b"\n\n") == b"data: %d\n\n" % number
        web.stage.pass_time(880)
        assert web.stage.gate.holds["vm-app"] == 1
    web.guest.events.put_nowait(None)
    assert await child.stdout.read() == b""
    assert await child.wait() == 0
    await web.stage.gate.until_released("vm-app")


@pytest.mark.skipif(not shutil.which("wrk"), reason="needs wrk")
async def test_wrk_meets_no_error(web: WebStage) -> None:
    ran = await run(
        "wrk",
        "-t1",
        "-c64",
        "-d2s",
        web.url.replace("app.hatch.localhost", "127.0.0.1") + "/hello",
        "-H",
        "Host: app.hatch.localhost",
    )
    report = ran.out.decode()
    assert re.search(r"[1-9]\d* requests in", report)
    assert "Socket errors" not in report and "Non-2xx" not in report
