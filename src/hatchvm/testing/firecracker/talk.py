"""A Firecracker, real or played, that a test talks to by hand."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from hatchvm.base.sockets import short_name

DEADLINE_S: Final = 30.0
SOCKET: Final = "api.sock"


class Talk:
    """One process, working in `folder`. Every call has a connection of its own."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self.process = process

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and body (None for none). A body of bytes is sent as it is."""
        connection = http.client.HTTPConnection("localhost")
        with contextlib.closing(connection):
            connection.sock = connect(self.folder / SOCKET)
            data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            connection.request(method, path, data)
            response = connection.getresponse()
            answer = response.read()
            return response.status, json.loads(answer) if answer else None

    def put(self, path: str, **body: Any) -> int:
        return self.ask("PUT", path, body)[0]

    def patch(self, path: str, **body: Any) -> int:
        return self.ask("PATCH", path, body)[0]

    @property
    def state(self) -> str:
        return str(self.ask("GET", "/")[1]["state"])

    def exit_code(self) -> int:
        """Once it has ended by itself."""
        return self.process.wait(DEADLINE_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def connect(path: Path) -> socket.socket:
    """Raises OSError."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.settimeout(DEADLINE_S)
    try:
        with short_name(path) as name:
            connected.connect(name)
    except OSError:
        connected.close()
        raise
    return connected


@contextlib.contextmanager
def talk(binary: Path, folder: Path) -> Iterator[Talk]:
    """Started in the network namespace of the calling thread; killed at the end. An earlier one's sockets go."""
    for left in (SOCKET, "vsock"):
        (folder / left).unlink(missing_ok=True)
    with (folder / "log").open("ab") as log:
        command = [str(binary), "--api-sock", SOCKET, "--id", "talk"]
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    talking = Talk(folder, process)
    try:
        _await_socket(talking)
        yield talking
    finally:
        talking.kill()


def _await_socket(talking: Talk) -> None:
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until:
        try:
            connect(talking.folder / SOCKET).close()
        except OSError:
            time.sleep(0.005)
            continue
        return
    raise AssertionError((talking.folder / "log").read_text())
