"""The image `tiny` under a real QEMU: one boot for most checks, an end by the power button, a second boot."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from hatchvm.domain.image import TINY, Image
from hatchvm.images import builtin
from hatchvm.images.seed import write_seed

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("tiny")]

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hatchvm"
BOOT_DEADLINE_S = 60.0
STOP_DEADLINE_S = 30.0

T = TypeVar("T")

#: What the guest is to write and what this test expects; a script in a script, with every kind of character.
PAYLOAD = "".join(f"line {n}: \\t 'q' \"q\" $HOME `id` % ñ€ #\n" for n in range(200)) + "\n  end\n"


def user_data(public_key: str) -> str:
    payload = "".join(f"      {line}\n" if line else "\n" for line in PAYLOAD.splitlines())
    return f"""#cloud-config
hostname: from-user-data
packages: [nginx]
ssh_authorized_keys:
  - {public_key}
write_files:
  - path: /srv/payload
    permissions: '0640'
    content: |
{payload}  - path: /srv/index.html
    content: "hello from the guest\\n"
runcmd:
  - echo ran >> /srv/runs
  - [sh, -c, 'ifconfig eth0 > /srv/network; ip route >> /srv/network; cat /etc/resolv.conf >> /srv/network']
  - echo 'httpd -p 8080 -h /srv' > /srv/serve
  - [httpd, -p, "8080", -h, /srv]
"""


def until(what: str, probe: Callable[[], T | None], deadline_s: float) -> T:
    """The first answer of `probe` that is not None."""
    end = time.monotonic() + deadline_s
    while (answer := probe()) is None:
        assert time.monotonic() < end, f"{what}: not within {deadline_s:.0f} s"
        time.sleep(0.02)
    return answer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Machine:
    """One QEMU process over a disk and a seed that stay when it ends."""

    def __init__(self, folder: Path, image: Image) -> None:
        self.folder = folder
        self.http_port, self.ssh_port = free_port(), free_port()
        self.console = folder / "console"
        self.console.unlink(missing_ok=True)
        (folder / "qmp").unlink(missing_ok=True)
        self.process = subprocess.Popen(self._command(image), cwd=folder)

    def _command(self, image: Image) -> list[str]:
        mhz = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("cpu MHz"))
        boot_args = f"{image.boot.boot_args} tsc_early_khz={int(float(mhz.split(':')[1]) * 1000)}"
        forwards = f"hostfwd=tcp:127.0.0.1:{self.http_port}-:8080,hostfwd=tcp:127.0.0.1:{self.ssh_port}-:22"
        return [
            *("qemu-system-x86_64", "-M", "microvm,x-option-roms=off,rtc=on,acpi=on", "-accel", "tcg", "-cpu", "max"),
            *("-m", "256", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-serial", "file:console", "-qmp", "unix:qmp,server=on,wait=off"),
            *("-kernel", str(image.boot.kernel), "-initrd", str(image.boot.initrd), "-append", boot_args),
            *("-drive", "id=root,file=disk,format=qcow2,if=none", "-device", "virtio-blk-device,drive=root"),
            *("-drive", "id=seed,file=seed.iso,format=raw,if=none,readonly=on"),
            *("-device", "virtio-blk-device,drive=seed"),
            *("-netdev", f"user,id=net0,restrict=off,{forwards}", "-device", "virtio-net-device,netdev=net0"),
        ]

    def said(self, text: str) -> str | None:
        """The console so far if it holds `text`. A guest that crashed ends the wait at once."""
        said = self.console.read_text(errors="replace") if self.console.exists() else ""
        assert text in said or self.process.poll() is None, f"QEMU ended: {said}"
        return said if text in said else None

    def get(self, path: str) -> bytes | None:
        # QEMU accepts before the guest does, and then ends the connection without a byte.
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=2)
        try:
            connection.request("GET", path)
            return connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def ssh(self, command: str, *, key: str = "key") -> subprocess.CompletedProcess[str]:
        return self.openssh("ssh", "-p", str(self.ssh_port), "-i", key, "root@127.0.0.1", command)

    def openssh(self, program: str, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """OpenSSH's `program`, knowing nothing of this machine's user; `text` is its standard input."""
        options = (
            "BatchMode=yes StrictHostKeyChecking=no UserKnownHostsFile=/dev/null LogLevel=ERROR IdentitiesOnly=yes"
        )
        return subprocess.run(
            [program, "-F", "none", *[word for option in options.split() for word in ("-o", option)], *words],
            cwd=self.folder,
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )

    def press_power_button(self) -> str:
        """Why QEMU ended, in its own word."""
        return self.ended(lambda command: command("system_powerdown"))

    def ended(self, by: Callable[[Callable[[str], None]], object]) -> str:
        """Why QEMU ended after this was done; it is given a way to send commands to QEMU."""
        with socket.socket(socket.AF_UNIX) as qmp:
            # A socket's path may have 107 bytes; the test's folder may be deeper.
            directory = os.open(self.folder, os.O_PATH | os.O_DIRECTORY)
            qmp.settimeout(STOP_DEADLINE_S)
            qmp.connect(f"/proc/self/fd/{directory}/qmp")
            os.close(directory)
            with qmp.makefile("rw") as stream:

                def send(command: str) -> None:
                    stream.write(json.dumps({"execute": command}) + "\n")
                    stream.flush()

                send("qmp_capabilities")
                by(send)
                while (message := json.loads(stream.readline())).get("event") != "SHUTDOWN":
                    pass
                assert self.process.wait(STOP_DEADLINE_S) == 0
                return str(message["data"]["reason"])

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def tiny() -> Image:
    return asyncio.run(builtin.build(TINY, CACHE, print))


@pytest.fixture(scope="module")
def folder(tiny: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk over the image, keys, and a seed."""
    folder = tmp_path_factory.mktemp("tiny")
    for name in ("key", "wrong-key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    public_key = (folder / "key.pub").read_text().strip()
    write_seed(folder / "seed.iso", instance_id="vm-1", hostname="from-meta-data", user_data=user_data(public_key))
    overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(tiny.boot.rootfs)]
    subprocess.run([*overlay, str(folder / "disk")], check=True)
    return folder


@pytest.fixture(scope="module")
def machine(folder: Path, tiny: Image) -> Iterator[Machine]:
    machine = Machine(folder, tiny)
    try:
        yield machine
    finally:
        machine.end()


def test_the_web_server_of_the_user_data_answers(machine: Machine) -> None:
    assert until("web server", lambda: machine.get("/index.html"), BOOT_DEADLINE_S) == b"hello from the guest\n"
    payload = until("payload", lambda: machine.get("/payload"), BOOT_DEADLINE_S)
    assert hashlib.sha256(payload).digest() == hashlib.sha256(PAYLOAD.encode()).digest()


def test_the_console_tells_what_was_ignored_and_how_it_ended(machine: Machine) -> None:
    said = until("end", lambda: machine.said("cloud-init: the script ended with status 0"), BOOT_DEADLINE_S)
    assert "cloud-init: ignored: packages" in said
    assert "not found" not in said


def test_ssh_admits_the_key_and_no_other(machine: Machine) -> None:
    until("ssh", lambda: machine.ssh("true").returncode == 0 or None, BOOT_DEADLINE_S)
    assert machine.ssh("hostname; id -u; cat /srv/runs").stdout == "from-user-data\n0\nran\n"
    refused = machine.ssh("true", key="wrong-key")
    assert refused.returncode == 255
    assert "Permission denied (publickey)" in refused.stderr


def test_scp_and_sftp_bring_files_in_and_out(machine: Machine, folder: Path) -> None:
    until("ssh", lambda: machine.ssh("true").returncode == 0 or None, BOOT_DEADLINE_S)
    (folder / "sent").write_text(PAYLOAD)
    how = ("-i", "key", "-P", str(machine.ssh_port))
    copied = machine.openssh("scp", *how, "sent", "root@127.0.0.1:/srv/sent")
    assert (copied.returncode, copied.stderr) == (0, "")
    fetched = machine.openssh("sftp", *how, "-b", "-", "root@127.0.0.1", text="get /srv/sent received\nrm /srv/sent\n")
    assert (fetched.returncode, fetched.stderr) == (0, "")
    assert (folder / "received").read_text() == PAYLOAD
    assert machine.ssh("ls /srv/sent").returncode == 1


def test_the_guest_is_as_promised(machine: Machine) -> None:
    until("ssh", lambda: machine.ssh("true").returncode == 0 or None, BOOT_DEADLINE_S)
    network = machine.ssh("cat /srv/network; ping -c 1 -W 2 127.0.0.1 >/dev/null && echo loopback").stdout
    for fact in ("inet addr:10.0.2.15", "default via 10.0.2.2", "nameserver 10.0.2.3", "loopback"):
        assert fact in network
    tools = "httpd wget nc sha256sum vi udhcpc acpid".split()
    found = machine.ssh(f"for tool in {' '.join(tools)}; do command -v $tool >/dev/null && echo $tool; done").stdout
    assert found.split() == tools
    files = machine.ssh("stat -c '%a %u:%g' /srv/payload; find / -xdev ! -user root -o -xdev ! -group root").stdout
    assert files == "640 0:0\n"
    clock = int(machine.ssh("date +%s").stdout)
    assert abs(clock - time.time()) < 30  # noqa: TID251  # the guest's clock is compared with the host's


def test_the_power_button_ends_it_and_a_second_boot_runs_nothing_again(
    machine: Machine, folder: Path, tiny: Image
) -> None:
    """The second one is told that it runs in a Firecracker, where the way to end is another."""
    until("ssh", lambda: machine.ssh("true").returncode == 0 or None, BOOT_DEADLINE_S)
    assert machine.ssh("echo kept > /root/note; mv /srv/serve /etc/serve").returncode == 0
    host_keys = machine.ssh("sha256sum /etc/dropbear/*").stdout
    assert machine.press_power_button() == "guest-shutdown"
    shutil.copy(machine.console, folder / "first-console")

    boot = replace(tiny.boot, boot_args=f"{tiny.boot.boot_args} hatch.vmm=firecracker")
    second = Machine(folder, replace(tiny, boot=boot))
    try:
        until("ssh", lambda: second.ssh("true").returncode == 0 or None, BOOT_DEADLINE_S)
        answer = second.ssh("hostname; cat /srv/runs /root/note; sh /etc/serve").stdout
        assert answer == "from-user-data\nran\nkept\n"
        assert second.ssh("sha256sum /etc/dropbear/*").stdout == host_keys
        assert until("web server", lambda: second.get("/index.html"), BOOT_DEADLINE_S) == b"hello from the guest\n"
        assert second.said("cloud-init") is None
        # What the kernel does on Ctrl+Alt+Del, the only button that a Firecracker has.
        assert second.ended(lambda _: second.ssh("kill -INT 1")) == "guest-reset"
    finally:
        second.end()
    checked = subprocess.run(["qemu-img", "check", "-q", str(folder / "disk")], check=False)
    assert checked.returncode == 0
