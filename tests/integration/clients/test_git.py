"""`git clone`, `push` and `pull` over HTTP, through the proxy to git's own CGI program."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import wsgiref.simple_server
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hatchvm.testing.edge.web import run
from hatchvm.testing.stage import Stage

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

pytestmark = pytest.mark.skipif(not shutil.which("git"), reason="needs git")


class _Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(root: Path) -> Iterator[int]:
    """Serve the repositories under `root`; the value is the port."""

    def backend(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        length = int(environ["CONTENT_LENGTH"] or 0)
        given = {name: value for name, value in environ.items() if isinstance(value, str)}
        settings = {"PATH": os.environ["PATH"], "GIT_PROJECT_ROOT": str(root), "GIT_HTTP_EXPORT_ALL": "1"}
        said = environ["wsgi.input"].read(length)
        ran = subprocess.run(["git", "http-backend"], input=said, env={**given, **settings}, stdout=-1, check=True)
        head, _, body = ran.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        start_response(fields.pop("Status", "200 OK"), list(fields.items()))
        return [body]

    server = wsgiref.simple_server.make_server("127.0.0.1", 0, backend, handler_class=_Quiet)
    thread = threading.Thread(target=server.serve_forever, name="git server")
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def git(folder: Path, *words: str) -> str:
    who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.invalid", "-c", "init.defaultBranch=main")
    ran = await run("git", *who, *words, cwd=folder)
    assert ran.status == 0, ran.err
    return ran.out.decode()


async def test_clone_push_and_pull(tmp_path: Path) -> None:
    shared, first, second = tmp_path / "shared.git", tmp_path / "first", tmp_path / "second"
    await git(tmp_path, "init", "--quiet", "--bare", str(shared))
    await git(shared, "config", "http.receivepack", "true")
    with serving(tmp_path) as port:
        async with Stage.open() as stage:
            stage.gate.add("app", port)
            url = f"http://app.hatch.localhost:{stage.port}/shared.git"
            await git(tmp_path, "clone", "--quiet", url, str(first))
            content = os.urandom(300_000)
            for number in range(3):
                (first / "file").write_bytes(content[number:])
                await git(first, "add", "file")
                await git(first, "commit", "--quiet", "-m", f"change {number}")
            await git(first, "push", "--quiet", "origin", "HEAD:main")
            await git(tmp_path, "clone", "--quiet", "--branch", "main", url, str(second))
            assert (second / "file").read_bytes() == content[2:]
            (first / "file").write_bytes(b"less")
            await git(first, "commit", "--quiet", "-a", "-m", "less")
            await git(first, "push", "--quiet", "origin", "HEAD:main")
            await git(second, "pull", "--quiet", "--ff-only")
            assert (second / "file").read_bytes() == b"less"
