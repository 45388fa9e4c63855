"""The least a wake can be: a script that starts QEMU on a saved VM, loads its state and asks for a page.

It works on a copy of a sleeping VM's folder, with the command line that Hatch would use, and has nothing else to do: no
rows, no checks, no proxy. What Hatch adds to it is what the wake benchmark reports.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Final

from hatchvm.base.paths import VMPaths
from hatchvm.ports.vmm import LaunchPlan
from hatchvm.vmm.qemu import cmdline
from hatchvm.vmm.qemu.handle import CAPABILITIES

_ANSWER_S: Final = 60.0


class BareVM:
    """A saved VM that is woken and put to sleep by hand. `forward`: the loopback port in the plan that leads to it."""

    def __init__(self, plan: LaunchPlan, machine: cmdline.Machine, forward: int) -> None:
        self._plan = plan
        self._machine = machine
        self._forward = forward
        self._paths = plan.paths
        self._child: subprocess.Popen[bytes] | None = None

    @staticmethod
    def copy_of(sleeping: VMPaths, to: Path) -> VMPaths:
        """A copy of a sleeping VM's folder, holes kept."""
        subprocess.run(["cp", "-r", "--sparse=always", sleeping.root, to], check=True)
        return VMPaths(to)

    def wake(self, request: bytes) -> float:
        """Seconds from nothing to the first byte of the answer."""
        began = time.perf_counter()
        self._start()
        with socket.create_connection(("127.0.0.1", self._forward), timeout=_ANSWER_S) as connection:
            connection.sendall(request)
            if not connection.recv(1):
                raise RuntimeError("the guest closed the connection without an answer")
            first_byte_s = time.perf_counter() - began
            while connection.recv(65536):
                pass
        return first_byte_s

    def sleep(self) -> None:
        """Save the device state again and end the process."""
        self._run("stop")
        state = os.open(self._paths.state, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            command = json.dumps({"execute": "getfd", "arguments": {"fdname": "state"}}).encode()
            socket.send_fds(self._socket, [command], [state])
            self._answer()
        finally:
            os.close(state)
        self._run("migrate", uri="fd:state")
        while self._run("query-migrate")["status"] != "completed":
            time.sleep(0.001)
        self._run("quit")
        self._end()

    def remove(self) -> None:
        """End the process, if any, and remove the copy."""
        if self._child is not None:
            self._child.kill()
            self._end()
        shutil.rmtree(self._paths.root)

    def _start(self) -> None:
        self._paths.qmp.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._paths.qmp))
            listener.listen(1)
            state = os.open(self._paths.state, os.O_RDONLY)
            argv = cmdline.argv(self._plan, self._machine, qmp_fd=listener.fileno(), incoming=True)
            fds = (listener.fileno(), state)
            self._child = subprocess.Popen(argv, cwd=self._paths.root, pass_fds=fds, stderr=subprocess.DEVNULL)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(self._paths.qmp))
        self._stream = self._socket.makefile("rb")
        self._stream.readline()
        self._run("qmp_capabilities")
        self._run("migrate-set-capabilities", capabilities=CAPABILITIES)
        self._run("migrate-incoming", uri=f"fd:{state}")
        while self._run("query-status")["status"] == "inmigrate":
            time.sleep(0.001)
        os.close(state)
        self._run("cont")

    def _run(self, command: str, **arguments: Any) -> Any:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        return self._answer()

    def _answer(self) -> Any:
        while "event" in (message := json.loads(self._stream.readline())):
            pass
        if "error" in message:
            raise RuntimeError(message["error"]["desc"])
        return message["return"]

    def _end(self) -> None:
        assert self._child is not None
        self._child.wait()
        self._stream.close()
        self._socket.close()
        self._child = None
