"""Rounds: every proxy has its turn in each, so that whatever else the machine does befalls all of them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.proxy.cases import Case
from bench.proxy.layout import BASE, Layout
from bench.proxy.peers import PEERS
from bench.proxy.programs import LOAD_CORE, PROXY_CORE, cpu_s, pinned, running
from bench.proxy.upstreams import guests
from hatchvm.testing.stage import free_port

_LUA: Final = Path(__file__).parent / "load.lua"
_WARM_UP_S: Final = 1
_START_S: Final = 120.0
_LOOK_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Sample:
    """One turn of a proxy."""

    requests: int
    seconds: float
    cpu_s: float

    @property
    def cpu_us(self) -> float:
        """For each request."""
        return self.cpu_s / self.requests * 1e6

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


def measure(case: Case, peers: Sequence[str], folder: Path, *, rounds: int, seconds: int) -> dict[str, list[Sample]]:
    """A sample of every peer for every round."""
    samples: dict[str, list[Sample]] = {peer: [] for peer in peers}
    with contextlib.ExitStack() as stack:
        vms = stack.enter_context(guests(case, folder / "guests"))
        ports, pids = {}, {}
        for peer in peers:
            layout = Layout(free_port(), vms, case.routes)
            (folder / peer).mkdir()
            argv = PEERS[peer].prepare(folder / peer, layout)
            log = folder / peer / "log"
            child = stack.enter_context(running(argv, core=PROXY_CORE, port=layout.port, log=log))
            ports[peer], pids[peer] = layout.port, child.pid
            _await_answer(case, layout.port)
            _load(case, layout.port, _WARM_UP_S)
        for number in range(rounds):
            for peer in peers if number % 2 else reversed(peers):
                before = cpu_s(pids[peer])
                requests, took_s = _load(case, ports[peer], seconds * case.stretch)
                samples[peer].append(Sample(requests, took_s, cpu_s(pids[peer]) - before))
    return samples


def profile(case: Case, folder: Path, into: Path, *, seconds: int) -> None:
    """One turn of Hatch under cProfile, its statistics written to `into`."""
    with contextlib.ExitStack() as stack:
        layout = Layout(free_port(), stack.enter_context(guests(case, folder / "guests")), case.routes)
        argv = [*PEERS["hatch"].prepare(folder, layout), "--profile", str(into)]
        stack.enter_context(running(argv, core=PROXY_CORE, port=layout.port, log=folder / "log"))
        _await_answer(case, layout.port)
        _load(case, layout.port, seconds)


def _load(case: Case, port: int, seconds: int) -> tuple[int, float]:
    """Requests that were answered, and in how many seconds. Raises RuntimeError if one was refused."""
    if case.load == "echo":
        argv = [sys.executable, "-m", "bench.proxy.echo", str(port), f"r0.{BASE}"]
        argv += [str(case.connections), str(case.size), str(seconds)]
    else:
        argv = ["wrk", "-t", "1", "-c", str(case.connections), "-d", f"{seconds}s", "--timeout", "30s", "-s", str(_LUA)]
        argv += [f"http://127.0.0.1:{port}{case.path}", "--", case.load, BASE, str(case.routes), str(case.size)]
    done = subprocess.run(pinned(LOAD_CORE, argv), check=True, capture_output=True, text=True)
    said = json.loads(done.stdout.splitlines()[-1])
    if said["refused"] or said["broken"] or not said["requests"]:
        raise RuntimeError(f"{case.title}: {said}")
    return int(said["requests"]), float(said["seconds"])


def _await_answer(case: Case, port: int) -> None:
    """What answers fast but wrong is not measured. Some listen before they have read their routes."""
    body = b"x" * case.size if case.load == "upload" else None
    request = urllib.request.Request(f"http://127.0.0.1:{port}{case.path}", body, {"Host": f"r0.{BASE}"})
    deadline = time.monotonic() + _START_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                length = len(answer.read())
            break
        except OSError:  # a status that is no success, too
            if time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_S)
    if not case.own_guest and length != case.size:
        raise RuntimeError(f"{case.title}: the answer has {length} bytes")
