"""A real server over a fake house, on the loopback, for tests of whoever speaks HTTP to the API."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn

from hatchvm.api.app import create_app
from hatchvm.testing.house import FakeHouse


@dataclass(frozen=True, slots=True)
class Live:
    """A served house. `key` opens it."""

    house: FakeHouse
    port: int
    key: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serve(house: FakeHouse) -> Iterator[Live]:
    """Serve `house` from a thread until the block ends."""
    app = create_app(
        house,
        house.keys,
        base_url_for=lambda subdomain: f"http://{subdomain}.hatch.localhost:9090",
        socket_path_for=lambda vm_id: f"/data/vms/{vm_id}/qmp.sock",
        version="1.2.3",
    )
    _, key = asyncio.run(house.keys.create("live"))
    # Listening before the thread starts: whoever connects early waits in the backlog, so nobody has to poll.
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]), name="live API")
    thread.start()
    try:
        yield Live(house, listener.getsockname()[1], key)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
