"""A browser through the proxy: a page that fetches, uploads, listens to events and opens a WebSocket."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from asyncio.subprocess import DEVNULL
from pathlib import Path
from typing import Final

import pytest

from hatchvm.testing.edge.web import WebStage

BROWSER: Final = shutil.which("chromium-headless-shell") or shutil.which("chromium")
PAGE: Final = """<!doctype html>
<script type="module">
async function everything() {
    const fetched = await (await fetch("/hello")).text();
    const size = (await (await fetch("/bytes?3000000")).arrayBuffer()).byteLength;
    const posted = (await (await fetch("/receive", {method: "POST", body: "x".repeat(200000)})).json()).size;
    const all = await Promise.all(Array.from({length: 30}, () => fetch("/hello")));
    const many = all.filter(answer => answer.ok).length;
    const events = await new Promise((done, failed) => {
        const heard = [], source = new EventSource("/events");
        source.onerror = failed;
        source.onmessage = event => { if (heard.push(event.data) == 3) { source.close(); done(heard); } };
    });
    const echoed = await new Promise((done, failed) => {
        const socket = new WebSocket(location.origin.replace("http", "ws") + "/socket");
        socket.onerror = failed;
        socket.onopen = () => socket.send("y".repeat(100000));
        socket.onmessage = event => { socket.close(); done(event.data.length); };
    });
    return {fetched, size, posted, many, events, echoed};
}
const report = await everything().catch(error => ({error: String(error)}));
await fetch("/report", {method: "POST", body: JSON.stringify(report)});
</script>"""
ALONE: Final = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--no-proxy-server"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)


@pytest.mark.skipif(not BROWSER, reason="needs Chromium")
async def test_a_page_that_does_everything(web: WebStage, tmp_path: Path) -> None:
    assert BROWSER
    web.guest.page = PAGE
    for event in ("a", "b", "c"):
        web.guest.events.put_nowait(event)
    argv = (BROWSER, *ALONE, f"--user-data-dir={tmp_path}", "--remote-debugging-port=0", web.url + "/")
    browser = await asyncio.create_subprocess_exec(*argv, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True)
    try:
        report = await web.guest.reports.get()
    finally:
        os.killpg(browser.pid, signal.SIGKILL)  # Debian's command is a script around the browser
        await browser.wait()
    assert report == {
        "fetched": "hello",
        "size": 3_000_000,
        "posted": 200_000,
        "many": 30,
        "events": ["a", "b", "c"],
        "echoed": 100_000,
    }
    await web.stage.gate.until_released("vm-app")
