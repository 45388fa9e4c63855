"""The proxies, each told the same: keep connections to guests, one worker, no access log, else as it comes."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from bench.proxy.layout import Layout

#: Connections to one guest that are kept while unused.
_KEPT: Final = 512

_NGINX: Final = """
user root;
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log stderr crit;
events {{ worker_connections 32768; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    map_hash_max_size 262144;
    map_hash_bucket_size 128;
{upstreams}
    map $http_upgrade $connection_header {{ default upgrade; "" ""; }}
{map}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://{vm};
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_header;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
    }}
}}
"""


def nginx(folder: Path, layout: Layout) -> list[str]:
    upstreams = "\n".join(
        f"    upstream vm{number} {{ server 127.0.0.1:{port}; keepalive {_KEPT}; keepalive_requests 1000000000; }}"
        for number, port in enumerate(layout.vms)
    )
    hosts = "".join(f"{host} vm{vm};\n" for vm in range(len(layout.vms)) for host in layout.hosts_of(vm))
    many = layout.routes > 1
    config = folder / "nginx.conf"
    config.write_text(
        _NGINX.format(
            folder=folder,
            port=layout.port,
            upstreams=upstreams,
            map=f'    map $host $vm {{ default "";\n{hosts}    }}' if many else "",
            vm="$vm" if many else "vm0",
        )
    )
    return ["nginx", "-c", str(config), "-p", str(folder)]


def hatch(folder: Path, layout: Layout) -> list[str]:
    vms = [str(port) for port in layout.vms]
    return [
        sys.executable, "-m", "bench.proxy.hatch", "--port", str(layout.port), "--routes", str(layout.routes),
        "--vms", *vms, "--data", str(folder),
    ]  # fmt: skip


#: Writes its configuration to a folder; returns its command line.
Peer = Callable[[Path, Layout], list[str]]
PEERS: Final[Mapping[str, Peer]] = {"nginx": nginx, "hatch": hatch}


def missing(name: str) -> bool:
    """True: this machine does not have the program."""
    return name != "hatch" and shutil.which(name, path="/usr/sbin:/usr/local/bin:/usr/bin") is None
