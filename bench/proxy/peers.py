"""The proxies, each told the same: keep connections to guests, one worker, no access log, else as it comes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.proxy.layout import Layout

#: Connections to one guest that are kept while unused.
_KEPT: Final = 512

#: Where scripts/bench-peers puts what is not in Debian.
_INSTALLED: Final = Path("build/peers").resolve()
#: A Python that finds Hatch with its core compiled before the source.
_COMPILED_PROGRAM: Final = str(Path("build/compiled/python").absolute())
_ENVOY_PROGRAM: Final = str(_INSTALLED / "envoy/_bin/envoy")
_ENVOY: Final = "type.googleapis.com/envoy.extensions"

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


_HAPROXY: Final = """
global
    nbthread 1
    maxconn 4096
defaults
    mode http
    timeout connect 10s
    timeout client 90s
    timeout server 90s
    timeout tunnel 15m
    http-reuse always
    option forwardfor
frontend clients
    bind 127.0.0.1:{port} backlog 4096
    http-request set-header X-Forwarded-Proto http
    {choose}
"""


def haproxy(folder: Path, layout: Layout) -> list[str]:
    table, config = folder / "map", folder / "haproxy.cfg"
    table.write_text("".join(f"{host} vm{vm}\n" for vm in range(len(layout.vms)) for host in layout.hosts_of(vm)))
    by_host = f"use_backend %[req.hdr(host),field(1,:),lower,map_str({table})]"
    choose = by_host if layout.routes > 1 else "default_backend vm0"
    backends = (f"backend vm{vm}\n    server guest 127.0.0.1:{port}\n" for vm, port in enumerate(layout.vms))
    config.write_text(_HAPROXY.format(port=layout.port, choose=choose) + "".join(backends))
    return ["haproxy", "-db", "-f", str(config)]


def caddy(folder: Path, layout: Layout) -> list[str]:
    server = {
        "listen": [f"127.0.0.1:{layout.port}"],
        "automatic_https": {"disable": True},
        "routes": [_caddy_route(layout, vm) for vm in range(len(layout.vms))],
    }
    config = {
        "admin": {"disabled": True, "config": {"persist": False}},
        "storage": {"module": "file_system", "root": str(folder)},
        "apps": {"http": {"servers": {"proxy": server}}},
    }
    return ["caddy", "run", "--config", _json(folder / "caddy.json", config)]


def _caddy_route(layout: Layout, vm: int) -> dict[str, Any]:
    proxy = {
        "handler": "reverse_proxy",
        "upstreams": [{"dial": f"127.0.0.1:{layout.vms[vm]}"}],
        "transport": {"protocol": "http", "keep_alive": {"max_idle_conns_per_host": _KEPT}},
    }
    return {"match": [{"host": layout.hosts_of(vm)}], "handle": [proxy]}


def traefik(folder: Path, layout: Layout) -> list[str]:
    services = {
        f"vm{vm}": {"loadBalancer": {"servers": [{"url": f"http://127.0.0.1:{port}"}], "serversTransport": "kept"}}
        for vm, port in enumerate(layout.vms)
    }
    routers = {
        f"r{host}".replace(".", "-"): {"rule": f"Host(`{host}`)", "service": f"vm{vm}", "entryPoints": ["web"]}
        for vm in range(len(layout.vms))
        for host in layout.hosts_of(vm)
    }
    transports = {"kept": {"maxIdleConnsPerHost": _KEPT}}
    routes = {"http": {"routers": routers, "services": services, "serversTransports": transports}}
    main = {
        "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
        "log": {"level": "ERROR"},
        "entryPoints": {"web": {"address": f"127.0.0.1:{layout.port}"}},
        "providers": {"file": {"filename": _json(folder / "routes.yml", routes), "watch": False}},
    }
    return [str(_INSTALLED / "bin/traefik"), f"--configFile={_json(folder / 'traefik.yml', main)}"]


def envoy(folder: Path, layout: Layout) -> list[str]:
    manager = {
        "@type": f"{_ENVOY}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "proxy",
        "use_remote_address": True,
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{_ENVOY}.filters.http.router.v3.Router"}}],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": f"vm{vm}",
                    "domains": layout.hosts_of(vm),
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": f"vm{vm}", "timeout": "0s"}}],
                }
                for vm in range(len(layout.vms))
            ]
        },
    }
    listener = {
        "name": "clients",
        "address": _envoy_address(layout.port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    clusters = [_envoy_cluster(vm, port) for vm, port in enumerate(layout.vms)]
    config = {"static_resources": {"listeners": [listener], "clusters": clusters}}
    path = _json(folder / "envoy.json", config)
    return [
        str(_INSTALLED / "envoy/_bin/envoy"),
        "-c",
        path,
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "-l",
        "error",
    ]


def _envoy_cluster(vm: int, port: int) -> dict[str, Any]:
    most = {"max_connections": 32768, "max_pending_requests": 32768, "max_requests": 32768}
    endpoint = {"endpoint": {"address": _envoy_address(port)}}
    return {
        "name": f"vm{vm}",
        "type": "STATIC",
        "circuit_breakers": {"thresholds": [most]},
        "load_assignment": {"cluster_name": f"vm{vm}", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def _envoy_address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def hatch(folder: Path, layout: Layout) -> list[str]:
    vms = [str(port) for port in layout.vms]
    options = ["--port", str(layout.port), "--routes", str(layout.routes), "--vms", *vms, "--data", str(folder)]
    return [sys.executable, "-m", "bench.proxy.hatch", *options]


def compiled(folder: Path, layout: Layout) -> list[str]:
    return [_COMPILED_PROGRAM, *hatch(folder, layout)[1:]]


def _json(path: Path, config: Mapping[str, Any]) -> str:
    path.write_text(json.dumps(config))
    return str(path)


@dataclass(frozen=True, slots=True)
class Peer:
    """`prepare` writes its configuration to a folder and returns its command line. `cannot`: case -> why not."""

    program: str
    prepare: Callable[[Path, Layout], list[str]]
    cannot: Mapping[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> bool:
        """True: this machine does not have the program."""
        return shutil.which(self.program, path="/usr/sbin:/usr/local/bin:/usr/bin") is None


PEERS: Final[Mapping[str, Peer]] = {
    "nginx": Peer("nginx", nginx),
    "hatch": Peer(sys.executable, hatch),
    "compiled": Peer(_COMPILED_PROGRAM, compiled),
    "haproxy": Peer("haproxy", haproxy),
    "envoy": Peer(_ENVOY_PROGRAM, envoy),
    "traefik": Peer(str(_INSTALLED / "bin/traefik"), traefik, {"routes100k": "walks its list of routes"}),
    "caddy": Peer("caddy", caddy),
}
