"""What the SSH gateway costs: a session through it against one straight to the same sshd, taking turns.

OpenSSH's sshd on loopback stands for the guest: an emulated guest would be what is measured, not the gateway.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Final

from bench.report import Row, machine, median, publish
from hatchvm.base.loop import loop_factory
from hatchvm.base.units import MIB
from hatchvm.edge.ssh import allow
from hatchvm.edge.ssh.gateway import SSHGateway
from hatchvm.edge.ssh.reach import GUEST_PORT
from hatchvm.testing import ssh
from hatchvm.testing.gate import FakeGate
from hatchvm.testing.stage import VM, free_port

_START_S: Final = 20.0
_SSH_MIB: Final = 200
_RAW_MIB: Final = 1024
_IDLE: Final = 2000
#: What `0.9 of a direct connection's throughput` is in time.
_TIME_GOAL: Final = 1 / 0.9
_IDLE_GOAL_KIB: Final = 10.0
_CHUNK: Final = 256 * 1024
_SSHD: Final = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PidFile none
"""


def run(folder: Path, *, rounds: int) -> None:
    """`rounds`: pairs of transfers each way, direct and through the gateway in turn."""
    with _sshd(folder) as sshd, _flood() as flood:
        rows = [*_sessions(folder, sshd, rounds), *_raw(flood, rounds), *_idle(flood)]
    publish("ssh", f"SSH gateway ({machine()})", rows)


def _sessions(folder: Path, sshd: int, rounds: int) -> list[Row]:
    count = _SSH_MIB * MIB
    ways: dict[str, Callable[[int], None]] = {
        "from the guest": lambda port: _ssh(folder, port, f"head -c {count} /dev/zero"),
        "to the guest": lambda port: _ssh(folder, port, "cat >/dev/null", count),
    }
    rows = []
    with _gateway(sshd) as (port, pid):
        for label, move in ways.items():
            direct, through, ratio, cpu_s = _in_turn(sshd, port, pid, rounds, move)
            rows += [Row(f"ssh, {label}, direct", _SSH_MIB / direct, "MiB/s")]
            rows += [Row(f"ssh, {label}, through the gateway", _SSH_MIB / through, "MiB/s")]
            rows += [Row(f"ssh, {label}: time against direct", ratio, "ratio", _TIME_GOAL)]
            rows += [Row(f"ssh, {label}: CPU time of the gateway", cpu_s / rounds / _SSH_MIB * 1024, "s/GiB")]
    return rows


def _raw(flood: int, rounds: int) -> list[Row]:
    with _gateway(flood) as (port, pid):
        direct, through, _, cpu_s = _in_turn(flood, port, pid, rounds, _drain)
    return [
        Row("bare connection, direct", _RAW_MIB / direct, "MiB/s"),
        Row("bare connection, through the gateway", _RAW_MIB / through, "MiB/s"),
        Row("bare connection: CPU time of the gateway", cpu_s / rounds / _RAW_MIB * 1024, "s/GiB"),
    ]


def _in_turn(
    direct_port: int, port: int, pid: int, rounds: int, move: Callable[[int], None]
) -> tuple[float, float, float, float]:
    """Medians of seconds, direct and through the gateway, and of a round's ratio; the gateway's CPU seconds."""
    direct: list[float] = []
    through: list[float] = []
    move(direct_port)
    move(port)
    before = _cpu_s(pid)
    for number in range(rounds):
        turns = [(direct_port, direct), (port, through)]
        for via, taken in turns if number % 2 else reversed(turns):
            began = time.perf_counter()
            move(via)
            taken.append(time.perf_counter() - began)
    ratio = median([own / least for own, least in zip(through, direct, strict=True)])
    return median(direct), median(through), ratio, _cpu_s(pid) - before


def _idle(flood: int) -> list[Row]:
    """Memory of the gateway's process for every idle session; what the kernel keeps for its sockets is not in it."""
    with _gateway(flood) as (port, pid):
        sessions = [_answered(port) for _ in range(10)]
        before = _resident_kib(pid)
        sessions += [_answered(port) for _ in range(_IDLE)]
        grown = _resident_kib(pid) - before
        for session in sessions:
            session.close()
    return [Row(f"memory for an idle session, of {_IDLE}", grown / _IDLE, "KiB", _IDLE_GOAL_KIB)]


def _answered(port: int) -> socket.socket:
    session = socket.create_connection(("127.0.0.1", port))
    session.sendall(b"idle")
    if session.recv(4) != b"idle":
        raise RuntimeError("the gateway did not connect")
    return session


def _drain(port: int) -> None:
    left = _RAW_MIB * MIB
    buffer = bytearray(_CHUNK)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"send")
        while got := connection.recv_into(buffer):
            left -= got
    if left:
        raise RuntimeError(f"{left} bytes are missing")


def _ssh(folder: Path, port: int, command: str, count: int = 0) -> None:
    """Run a command over SSH, with `count` zeros as its input; its output goes nowhere."""
    feed = ["head", "-c", str(count), "/dev/zero"]
    argv = ["ssh", *ssh.ALONE, "-i", str(folder / "user"), "-p", str(port), "root@127.0.0.1", command]
    with subprocess.Popen(feed, stdout=subprocess.PIPE) as source:
        subprocess.run(argv, stdin=source.stdout, stdout=subprocess.DEVNULL, check=True)


@contextmanager
def _sshd(folder: Path) -> Iterator[int]:
    """An OpenSSH server of our own; its port."""
    binary = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if binary is None:
        raise RuntimeError("sshd is missing: install openssh-server")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    port = free_port()
    (folder / "sshd.conf").write_text(_SSHD.format(port=port, folder=folder))
    Path("/run/sshd").mkdir(exist_ok=True)  # where it sheds its privileges
    child = subprocess.Popen([binary, "-D", "-f", folder / "sshd.conf"], stderr=subprocess.DEVNULL)
    try:
        _await_port(port)
        yield port
    finally:
        child.terminate()
        child.wait()


@contextmanager
def _flood() -> Iterator[int]:
    """A server that sends much to whoever says `send`, and stays silent to others after an echo; its port."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        port = int(listener.getsockname()[1])
        child = multiprocessing.get_context("fork").Process(target=_serve_flood, args=(listener,), daemon=True)
        child.start()
        try:
            yield port
        finally:
            child.terminate()
            child.join()


def _serve_flood(listener: socket.socket) -> None:
    silent = []
    while True:
        connection, _ = listener.accept()
        word = connection.recv(4)
        if word == b"send":
            with connection:
                for _ in range(_RAW_MIB * MIB // _CHUNK):
                    connection.sendall(bytes(_CHUNK))
        else:
            connection.sendall(word)
            silent.append(connection)


@contextmanager
def _gateway(guest_port: int) -> Iterator[tuple[int, int]]:
    """The gateway in a process of its own, before a guest on that port; its port and process."""
    context = multiprocessing.get_context("spawn")
    port, ready = free_port(), context.Event()
    child = context.Process(target=_serve_gateway, args=(port, guest_port, ready), daemon=True)
    child.start()
    try:
        if not ready.wait(_START_S):
            raise RuntimeError("the gateway did not start")
        assert child.pid is not None
        yield port, child.pid
    finally:
        child.terminate()
        child.join()


def _serve_gateway(port: int, guest_port: int, ready: Event) -> None:
    async def serve() -> None:
        gate = FakeGate()
        gate.ports[VM, GUEST_PORT] = guest_port
        gateway = SSHGateway(gate, allowed=allow.parse("127.0.0.1"), wake_timeout_s=_START_S)
        gateway.open(VM, port)
        ready.set()
        await asyncio.Event().wait()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:  # as the daemon does
        runner.run(serve())


def _await_port(port: int) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.02)
    raise RuntimeError("sshd did not start")


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_kib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024
