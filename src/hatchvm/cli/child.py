"""`hatchvm serve` as a child process on free loopback ports: what the demo, the benchmarks and the tests drive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from hatchvm.base.errors import Unavailable
from hatchvm.base.paths import DataPaths, VMPaths
from hatchvm.client import Client
from hatchvm.node import lazy
from hatchvm.vmm.qemu import process

_START_S: Final = 300.0  # the first start on a host builds the image
_STOP_S: Final = 60.0
_LOOK_S: Final = 0.02


class ChildDaemon:
    """A daemon over `data`, with its log beside it.

    `settings`: HATCH_* variables that differ from the defaults, from the next start on.
    `prefix`: a command that runs the one behind it, such as `nice`.
    """

    def __init__(self, data: Path, settings: Mapping[str, str], *, prefix: Sequence[str] = ()) -> None:
        self.paths = DataPaths(data)
        self.log_file = data.with_name(f"{data.name}.log")
        self.api = ""
        self.proxy_port = 0
        self.settings = dict(settings)
        self._prefix = list(prefix)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and return when it serves. Raises Unavailable with the end of its log."""
        self.log_file.touch(0o600)
        begin = self.mark()
        environment = {**os.environ, "HATCH_HTTP_ADDR": "127.0.0.1:0", "HATCH_PROXY_ADDR": "127.0.0.1:0"}
        environment |= {"HATCH_DATA_DIR": str(self.paths.root), "HATCH_LOG_FORMAT": "json", **self.settings}
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._prefix, sys.executable, "-c", "from hatchvm.cli.main import main; main()", "serve"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # a Ctrl-C in the terminal is the parent's to handle
            )
        started = self._await_start(begin)
        self.api = f"http://127.0.0.1:{started['api_port']}"
        self.proxy_port = int(started["proxy_port"])

    @property
    def pid(self) -> int | None:
        """Of the process last started."""
        return None if self._process is None else self._process.pid

    def stop(self) -> int | None:
        """Ask it to end; its exit code (None: it was not running). VMs go on running."""
        if self._process is None:
            return None
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def kill(self) -> None:
        """End it without asking."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def end(self) -> None:
        """Delete every VM, then stop. Nothing is left running, not even what a killed daemon left."""
        try:
            if self._process is not None and self._process.poll() is None:
                with self.client() as client:
                    for vm in client.list_vms():
                        client.delete_vm(vm["id"])
        finally:
            self.stop()
            for folder in self.paths.vms.glob("*"):
                if stray := process.find(VMPaths(folder)):
                    stray.signal(signal.SIGKILL)
                lazy.shoot(VMPaths(folder))

    def client(self) -> Client:
        """A client with the key that its first start made."""
        return Client(self.api, self.paths.api_key.read_text().strip())

    def mark(self) -> int:
        """A position in the log."""
        return self.log_file.stat().st_size

    def log(self, start: int = 0) -> list[dict[str, Any]]:
        """The events logged since a position."""
        whole = self.log_file.read_bytes()[start:].rpartition(b"\n")[0]
        return [json.loads(line) for line in whole.splitlines() if line.startswith(b"{")]

    def _await_start(self, begin: int) -> dict[str, Any]:
        assert self._process is not None
        deadline = time.monotonic() + _START_S
        while self._process.poll() is None and time.monotonic() < deadline:
            for event in self.log(begin):
                if event.get("msg") == "hatch started":
                    return event
            time.sleep(_LOOK_S)
        self.kill()
        last = self.log_file.read_text(errors="replace")[-2000:].strip()
        raise Unavailable(f"Hatch did not start: {last.splitlines()[-1] if last else 'it said nothing'}", detail=last)
