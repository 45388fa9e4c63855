"""The daemon as a user starts it: a process of its own, driven through its API, its proxy and its log.

One daemon and one VM serve the whole session of a worker: tests leave the VM running or asleep, never gone.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from hatchvm.client import Client

#: What the guest runs: a page, a counter that lives only in RAM, and a checksummed file on disk.
USER_DATA = r"""#!/bin/sh
mkdir -p /www/cgi-bin
echo "hello from the guest" > /www/index.html
cat > /www/cgi-bin/count <<'EOF'
#!/bin/sh
exec 9>/run/count.lock; flock 9
n=$(( $(cat /run/count 2>/dev/null || echo 0) + 1 )); echo $n > /run/count
printf 'Content-Type: text/plain\r\n\r\n%s' "$n"
EOF
cat > /www/cgi-bin/sum <<'EOF'
#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n'; sha256sum < /root/blob | cut -d' ' -f1
EOF
cat > /www/cgi-bin/uptime <<'EOF'
#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n'; cut -d' ' -f1 /proc/uptime
EOF
cat > /www/cgi-bin/slow <<'EOF'
#!/bin/sh
sleep 2; printf 'Content-Type: text/plain\r\n\r\nslow'
EOF
chmod +x /www/cgi-bin/*
mount -t tmpfs -o size=1m none /run 2>/dev/null
dd if=/dev/urandom of=/root/blob bs=1k count=2048 2>/dev/null; sync
httpd -p 8080 -h /www
"""

DEADLINE_S = 60.0


def wait_for(what: Callable[[], Any], describe: str, deadline_s: float = DEADLINE_S) -> Any:
    """The first true value of `what()`; fails with `describe` at the deadline."""
    until = time.monotonic() + deadline_s
    while time.monotonic() < until:
        if value := what():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {deadline_s} s: {describe}")


@dataclass
class Daemon:
    """`hatchvm serve` over a data directory."""

    data: Path
    settings: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    api: str = ""
    proxy_port: int = 0

    def start(self) -> None:
        log_at = self.log_file.stat().st_size if self.log_file.exists() else 0
        environment = {
            **os.environ,
            "HATCH_DATA_DIR": str(self.data),
            "HATCH_HTTP_ADDR": "127.0.0.1:0",
            "HATCH_PROXY_ADDR": "127.0.0.1:0",
            "HATCH_ACCEL": "tcg",
            "HATCH_LOG_FORMAT": "json",
            **self.settings,
        }
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [Path(sys.executable).with_name("hatchvm"), "serve"],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=log,
                cwd=self.data.parent,
            )
        process = self.process

        def started() -> dict[str, Any] | None:
            assert process.poll() is None, f"the daemon ended: {self.log_file.read_text()[log_at:]}"
            return next((line for line in self.log(log_at) if line["msg"] == "hatch started"), None)

        line = wait_for(started, "the daemon's start")
        self.api = f"http://127.0.0.1:{line['api_port']}"
        self.proxy_port = line["proxy_port"]

    @property
    def log_file(self) -> Path:
        return self.data.parent / "daemon.log"

    def log(self, start: int = 0) -> list[dict[str, Any]]:
        """The whole lines of the log from a byte on."""
        text = self.log_file.read_bytes()[start:]
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith(b"\n") and line[:1] == b"{"]

    def count(self, message: str, start: int = 0) -> int:
        return sum(line["msg"] == message for line in self.log(start))

    def mark(self) -> int:
        """A position in the log, for `log` and `count`."""
        return self.log_file.stat().st_size

    @property
    def key(self) -> str:
        return (self.data / "api-key").read_text().strip()

    def client(self) -> Client:
        return Client(self.api, self.key)

    def kill(self) -> None:
        """`kill -9`."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)

    def url(self, subdomain: str, path: str = "/") -> str:
        return f"http://{subdomain}.hatch.localhost:{self.proxy_port}{path}"

    def get(self, subdomain: str, path: str = "/", **options: Any) -> httpx2.Response:
        """A request through the proxy."""
        headers = {"Host": f"{subdomain}.hatch.localhost"}
        timeout = options.pop("timeout", DEADLINE_S)
        return httpx2.get(
            f"http://127.0.0.1:{self.proxy_port}{path}", headers=headers, timeout=timeout, trust_env=False, **options
        )

    def vmm_pid(self, vm_id: str) -> int:
        return int(json.loads((self.data / "vms" / vm_id / "vmm.json").read_text())["pid"])

    def end_everything(self) -> None:
        """Also VMMs of VMs that a test left."""
        if self.process is not None and self.process.poll() is None:
            self.stop()
        for record in self.data.glob("vms/*/vmm.json"):
            pid = int(json.loads(record.read_text())["pid"])
            if re.search(rb"qemu", Path(f"/proc/{pid}/cmdline").read_bytes()):
                os.kill(pid, signal.SIGKILL)


def new_daemon(folder: Path, **settings: str) -> Daemon:
    daemon = Daemon(folder / "data", settings)
    daemon.start()
    return daemon


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    running = new_daemon(tmp_path_factory.mktemp("daemon"))
    yield running
    running.end_everything()


@dataclass
class Guest:
    """The shared VM, with a route to its web server."""

    daemon: Daemon
    id: str
    subdomain: str

    def get(self, path: str = "/", **options: Any) -> httpx2.Response:
        return self.daemon.get(self.subdomain, path, **options)

    def state(self) -> str:
        with self.daemon.client() as client:
            return client.get_vm(self.id)["state"]

    def sleep(self) -> None:
        """Put it to sleep, if it is not; its snapshot is stored on return."""
        with self.daemon.client() as client:
            if client.get_vm(self.id)["state"] == "running":
                client.snapshot_vm(self.id)


@pytest.fixture(scope="session")
def guest(daemon: Daemon) -> Guest:
    with daemon.client() as client:
        vm = client.create_vm(user_data=USER_DATA, mem_mib=256, name="shared")
        client.create_route(vm["id"], target_port=8080, subdomain="shared")
    shared = Guest(daemon, vm["id"], "shared")
    answer = shared.get()
    assert (answer.status_code, answer.text) == (200, "hello from the guest\n")
    return shared
