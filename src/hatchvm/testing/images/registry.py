"""A container registry on the loopback, over an OCI layout: as much of the distribution protocol as a pull needs."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

_PATH: Final = re.compile(r"/v2/[a-z0-9/]+/(manifests|blobs)/(sha256:([0-9a-f]{64})|[A-Za-z0-9_.-]+)")


@contextmanager
def serve(layout: Path) -> Iterator[int]:
    """Serve the layout's image under every name and tag until the block ends; the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/v2/":
                self._answer(b"{}", "application/json")
                return
            match = _PATH.fullmatch(self.path)
            if match is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            content = (layout / "blobs/sha256" / match[3]).read_bytes() if match[3] else _top(layout)
            media_type = json.loads(content)["mediaType"] if match[1] == "manifests" else "application/octet-stream"
            self._answer(content, media_type)

        def _answer(self, content: bytes, media_type: str) -> None:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", media_type)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a test's output is its own."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, name="registry")
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _top(layout: Path) -> bytes:
    """The index that the layout's own index leads to."""
    digest = str(json.loads((layout / "index.json").read_bytes())["manifests"][0]["digest"])
    return (layout / "blobs/sha256" / digest.removeprefix("sha256:")).read_bytes()
