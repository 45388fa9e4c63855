"""The guests: servers that must not be what is measured."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from bench.proxy.cases import CASES, KIB, Case
from bench.proxy.programs import LOAD_CORE, running
from hatchvm.testing.stage import free_port

_NGINX: Final = """
user root;
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log stderr crit;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    server_tokens off;
    keepalive_requests 1000000000;
    sendfile on;
    tcp_nopush on;
    open_file_cache max=10;
    default_type application/octet-stream;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
{listen}
        root {folder};
        location = /1k {{ return 200 "{body}"; }}
        location /varied/ {{ add_header X-Request-Id $request_id; return 200 "{body}"; }}
    }}
}}
"""


@contextlib.contextmanager
def guests(case: Case, folder: Path) -> Iterator[list[int]]:
    """As many servers as the case has VMs; their ports."""
    folder.mkdir()
    ports = _free_ports(case.vms)
    own = [sys.executable, "-m", "bench.proxy.guest", str(ports[0])]
    argv = own if case.own_guest else _nginx(folder, ports)
    with running(argv, core=LOAD_CORE, port=ports[0], log=folder / "log"):
        yield ports


def _nginx(folder: Path, ports: Sequence[int]) -> list[str]:
    for file in CASES.values():
        if file.load == "same" and file.size > KIB:
            (folder / file.path.lstrip("/")).write_bytes(b"x" * file.size)
    listen = "\n".join(f"        listen 127.0.0.1:{port} backlog=4096;" for port in ports)
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, listen=listen, body="x" * KIB))
    return ["nginx", "-c", str(config), "-p", str(folder)]


def _free_ports(count: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)
