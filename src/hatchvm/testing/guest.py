"""A real guest that tests can look into: what it runs, and how to ask it through the daemon's proxy."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from hatchvm.base.paths import VMPaths
from hatchvm.cli.child import ChildDaemon
from hatchvm.client import Client
from hatchvm.client.answers import VM, Snapshot

T = TypeVar("T")

#: Generous: it only ends tests that have failed.
DEADLINE_S: Final = 60.0
WEB_PORT: Final = 8080
ECHO_PORT: Final = 8081
MEM_MIB: Final = 128
PAGE: Final = "hello from the guest\n"

_CGI: Final = {
    # A counter that lives only in RAM: it goes on only if memory came back.
    "count": 'exec 9>/run/lock; flock 9; n=$(( $(cat /run/count) + 1 )); echo $n >/run/count; printf "\\r\\n$n"',
    "sums": 'printf "\\r\\n"; cat /root/noise | sha256sum; cat /run/noise | sha256sum',
    "uptime": 'printf "\\r\\n"; read up rest </proc/uptime; echo $up',
    # What is uploaded can be downloaded as /received.
    "receive": 'head -c $CONTENT_LENGTH >/run/received; printf "\\r\\n"; sha256sum </run/received',
    "drip": 'printf "\\r\\n"; while echo drop; do usleep 200000; done',
    "keep": 'printf "\\r\\n"; echo "$QUERY_STRING" >/root/kept; sync',
    "kept": 'printf "\\r\\n"; cat /root/kept',
}
_ECHO: Final = r"""#!/bin/sh
while read -r line && [ "$line" != "$(printf '\r')" ]; do :; done
printf 'HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n'
exec cat
"""
_BOOT: Final = f"""#!/bin/sh
httpd -p {WEB_PORT} -h /www
nc -ll -p {ECHO_PORT} -e /root/echo &
"""


def user_data(ssh_key: str) -> str:
    """What cloud-init makes of the guest: a web server with the programs above, and SSH for `ssh_key`.

    JSON is YAML: nothing needs to be quoted by hand. The web server starts again after every boot.
    """
    files = [{"path": "/www/index.html", "content": PAGE}, {"path": "/root/echo", "content": _ECHO}]
    files += [
        {"path": f"/www/cgi-bin/{name}", "content": f"#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n'\n{script}\n"}
        for name, script in _CGI.items()
    ]
    files += [{"path": "/root/serve", "content": _BOOT}]
    commands = [
        "chmod +x /www/cgi-bin/* /root/echo /root/serve; ln -s /run/received /www/received",
        "head -c 1048576 /dev/urandom >/root/noise; sync",
        "head -c 1048576 /dev/urandom >/run/noise; echo 0 >/run/count",
        "echo ::wait:/root/serve >>/etc/inittab",
        "/root/serve",
    ]
    return "#cloud-config\n" + json.dumps(
        {"ssh_authorized_keys": [ssh_key], "write_files": files, "runcmd": commands}, indent=1
    )


def wait_for(what: Callable[[], T | None], describe: str, deadline_s: float = DEADLINE_S) -> T:
    """The first true value of `what()`. Raises AssertionError with `describe` at the deadline."""
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        if value := what():
            return value
        time.sleep(0.01)
    raise AssertionError(f"not within {deadline_s:g} s: {describe}")


def events(daemon: ChildDaemon, message: str, start: int = 0, **fields: object) -> list[dict[str, Any]]:
    """The log's events of that name since a position, with those fields."""
    return [
        event
        for event in daemon.log(start)
        if event.get("msg") == message and all(event.get(name) == value for name, value in fields.items())
    ]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back through the proxy."""

    status: int
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode().strip()


@dataclass(frozen=True, slots=True)
class Guest:
    """One VM with a route to its web server."""

    daemon: ChildDaemon
    id: str
    subdomain: str

    @property
    def paths(self) -> VMPaths:
        return self.daemon.paths.vm(self.id)

    @property
    def host(self) -> str:
        """Its Host header."""
        return f"{self.subdomain}.hatch.localhost"

    def ask(self, path: str = "/", *, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Answer:
        """One request through the proxy, over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.daemon.proxy_port, timeout=DEADLINE_S)
        try:
            method = "GET" if body is None else "POST"
            connection.request(method, path, body, {"Host": self.host, **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, response.read())
        finally:
            connection.close()

    def text(self, path: str = "/") -> str:
        """The body of an answer that must be 200."""
        answer = self.ask(path)
        assert answer.status == 200, f"{path}: {answer.status} {answer.text}"
        return answer.text

    def count(self) -> int:
        """The next value of the counter in RAM."""
        return int(self.text("/cgi-bin/count"))

    def sums(self) -> str:
        """Digests of random bytes, in a file on disk and in one in memory."""
        return self.text("/cgi-bin/sums")

    def uptime_s(self) -> float:
        return float(self.text("/cgi-bin/uptime"))

    def pid(self) -> int:
        """Of its VMM."""
        return int(json.loads(self.paths.process.read_bytes())["pid"])

    def look(self) -> VM:
        with self.daemon.client() as client:
            return client.get_vm(self.id)

    def state(self) -> str:
        return self.look()["state"]

    def sleep(self) -> Snapshot:
        """Put it to sleep, waking it before if need be; its snapshot is stored on return."""
        with self.daemon.client() as client:
            if client.get_vm(self.id)["state"] == "snapshotted":
                client.restore_vm(self.id)
            return client.snapshot_vm(self.id)


def create_guest(client: Client, daemon: ChildDaemon, name: str, **fields: Any) -> Guest:
    """A VM named `name`, with a route of that name to its web server."""
    vm = client.create_vm(name=name, **fields)
    client.create_route(vm["id"], target_port=WEB_PORT, subdomain=name)
    return Guest(daemon, vm["id"], name)
