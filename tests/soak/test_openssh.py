"""OpenSSH's own programs against a Debian guest that sleeps, and a guest that has slept for a day.

Takes a quarter of an hour, most of it a session in which nobody types.
"""

from __future__ import annotations

import hashlib
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from hatchvm.cli.child import ChildDaemon
from hatchvm.testing.guest import Guest, create_guest, wait_for
from hatchvm.testing.ssh import ALONE

HATCHVM: Final = str(Path(sys.executable).with_name("hatchvm"))

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3600)]

MIB: Final = 1024 * 1024
DAY_S: Final = 86400
#: How long nobody types; the VM would sleep after one of these.
SILENCE_S: Final = float(os.environ.get("HATCH_SOAK_S", "600"))
IDLE_S: Final = 60
BOOT_S: Final = 400
COMMAND_S: Final = 900


class Login:
    """OpenSSH's programs with what they need to get into one guest."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.key = str(guest.daemon.paths.house_key)
        self.port = str(guest.look()["ssh_port"])

    @property
    def ssh(self) -> list[str]:
        return ["ssh", *ALONE, "-i", self.key, "-p", self.port]

    def run(self, *words: str) -> str:
        return self._output([*self.ssh, "root@127.0.0.1", *words])

    def copy(self, program: str, *words: str) -> str:
        """`scp` or `sftp`."""
        return self._output([program, *ALONE, "-i", self.key, "-P", self.port, *words])

    def rsync(self, source: Path, target: str) -> str:
        return self._output(["rsync", "-a", "-e", " ".join(self.ssh), str(source), f"root@127.0.0.1:{target}"])

    def digest(self, path: str) -> str:
        return self.run("sha256sum", path).split()[0]

    def _output(self, command: list[str]) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChildDaemon]:
    subprocess.run([HATCHVM, "image", "build", "debian"], check=True)
    settings = {"HATCH_IDLE_TIMEOUT": f"{IDLE_S}s", "HATCH_IDLE_CHECK_INTERVAL": "5s", "HATCH_LOG_LEVEL": "debug"}
    child = ChildDaemon(tmp_path_factory.mktemp("daemon") / "data", settings)
    child.start()
    try:
        yield child
    finally:
        child.end()


@pytest.fixture(scope="module")
def login(daemon: ChildDaemon) -> Login:
    with daemon.client() as client:
        guest = create_guest(client, daemon, "debian", image_id="debian", mem_mib=1024)
        lease = client.create_hold(guest.id, ttl="10m", reason="first boot")
        login = Login(guest)

        def answers() -> bool:
            return (
                subprocess.run([*login.ssh, "root@127.0.0.1", "true"], capture_output=True, check=False).returncode == 0
            )

        wait_for(answers, "the guest's first boot", BOOT_S)
        login.run("cloud-init status --wait")
        client.release_hold(guest.id, lease["id"])
    return login


@pytest.fixture
def asleep(login: Login) -> Login:
    login.guest.sleep()
    assert login.guest.state() == "snapshotted"
    return login


def noise(path: Path, size: int) -> str:
    """Write random bytes; their SHA-256."""
    data = random.Random(size).randbytes(size)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def test_ssh(asleep: Login) -> None:
    assert asleep.run("uname -s; cat /etc/debian_version").startswith("Linux\n12")


def test_scp(asleep: Login, tmp_path: Path) -> None:
    digest = noise(tmp_path / "noise", 20 * MIB)
    asleep.copy("scp", str(tmp_path / "noise"), "root@127.0.0.1:/root/scp")
    assert asleep.digest("/root/scp") == digest
    asleep.copy("scp", "root@127.0.0.1:/root/scp", str(tmp_path / "back"))
    assert hashlib.sha256((tmp_path / "back").read_bytes()).hexdigest() == digest


def test_sftp(asleep: Login, tmp_path: Path) -> None:
    digest = noise(tmp_path / "noise", 20 * MIB)
    (tmp_path / "batch").write_text(f"put {tmp_path}/noise /root/sftp\nget /root/sftp {tmp_path}/back\n")
    asleep.copy("sftp", "-b", str(tmp_path / "batch"), "root@127.0.0.1")
    assert hashlib.sha256((tmp_path / "back").read_bytes()).hexdigest() == digest


def test_rsync_of_200_mib(asleep: Login, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    digests = {f"part-{n}": noise(tmp_path / "folder" / f"part-{n}", 50 * MIB + n) for n in range(4)}
    asleep.rsync(tmp_path / "folder", "/root/")
    there = asleep.run("cd /root/folder && sha256sum *").split()
    assert dict(zip(there[1::2], there[::2], strict=True)) == digests


def test_port_forwarding(asleep: Login) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    forward = subprocess.Popen([*asleep.ssh, "-N", "-L", f"127.0.0.1:{port}:127.0.0.1:22", "root@127.0.0.1"])
    try:

        def banner() -> bytes:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                    return connection.recv(100)
            except OSError:
                return b""

        assert wait_for(banner, "the forwarded port answers").startswith(b"SSH-2.0-OpenSSH")
    finally:
        forward.terminate()
        forward.wait()


def test_a_session_in_which_nobody_types_holds_the_vm_awake(asleep: Login) -> None:
    command = [*asleep.ssh, "root@127.0.0.1", "cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as session:
        assert session.stdin is not None
        assert session.stdout is not None
        session.stdin.write("one\n")
        assert session.stdout.readline() == "one\n"
        until = time.monotonic() + SILENCE_S
        while time.monotonic() < until:
            assert asleep.guest.state() == "running"
            time.sleep(min(5.0, SILENCE_S))
        session.stdin.write("two\n")
        assert session.stdout.readline() == "two\n"
    assert session.returncode == 0
    wait_for(lambda: asleep.guest.state() == "snapshotted", "it sleeps when the session is over", IDLE_S + 60)


def test_after_a_day_of_sleep_the_clock_is_right_and_certificates_are_valid(login: Login, tmp_path: Path) -> None:
    """A guest whose clock stands a day back when it falls asleep is what one is that slept for a day."""
    certificate = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run(
        [*certificate, "-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")],
        check=True,
        capture_output=True,
    )
    login.copy("scp", str(tmp_path / "cert"), "root@127.0.0.1:/root/cert")
    login.run("systemctl stop systemd-timesyncd 2>/dev/null; rm -f /root/ticks")
    login.run("nohup sh -c 'while sleep 1; do echo >>/root/ticks; done' >/dev/null 2>&1 & sleep 3")
    verify = "openssl verify -CAfile /root/cert /root/cert 2>&1 || true"
    login.run(f"date -s @$(( $(date +%s) - {DAY_S} ))")
    assert "not yet valid" in login.run(verify)
    login.guest.sleep()
    before = time.time()  # noqa: TID251 - the host's own clock is what the guest is compared with
    guest_says = float(login.run("date +%s.%N"))
    after = time.time()  # noqa: TID251
    assert before - 0.05 <= guest_says <= after + 0.05
    assert ": OK" in login.run(verify)
    ticks = int(login.run("wc -l </root/ticks; sleep 3"))
    assert int(login.run("wc -l </root/ticks")) - ticks < 10, "timers fired in a burst"
    with login.guest.daemon.client() as client:
        last = client.get_activity(login.guest.id)["last_wake"]
    assert last is not None
    assert last["put_right"]["done"] == ["clock"]
