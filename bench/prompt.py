"""From starting `ssh` to the guest's prompt: for a VM that sleeps against one that runs, taking turns."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Final

from bench import vms
from bench.report import Row, machine, median, publish
from hatchvm.cli.child import ChildDaemon
from hatchvm.testing import ssh

_MEM_MIB: Final = 256
_PROMPT: Final = b"# "
_BOOT_S: Final = 120.0
_LOOK_S: Final = 0.2


def run(folder: Path, *, rounds: int) -> None:
    """`rounds`: pairs of sessions."""
    key = folder / "user"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    daemon = ChildDaemon(folder / "data", {})
    daemon.start()
    try:
        rows = _prompts(daemon, key, rounds)
    finally:
        daemon.end()
    publish("prompt", f"From ssh to a prompt ({machine()})", rows)


def _prompts(daemon: ChildDaemon, key: Path, rounds: int) -> list[Row]:
    public = key.with_suffix(".pub").read_text().strip()
    with daemon.client() as client:
        user_data = f"#cloud-config\nssh_authorized_keys:\n  - {public}\n"
        vm = client.create_vm(name="prompt", mem_mib=_MEM_MIB, user_data=user_data)
    port = vm["ssh_port"]
    _await_sshd(port, key)
    running, asleep = [], []
    for _ in range(rounds):
        running.append(_prompt_s(port, key))
        vms.sleep(daemon, vm["id"])
        asleep.append(_prompt_s(port, key))
    return [
        Row("ssh to a prompt, running, p50", median(running), "s"),
        Row("ssh to a prompt, asleep, p50", median(asleep), "s"),
        Row("what the wake adds, p50", median(asleep) - median(running), "s"),
    ]


def _await_sshd(port: int | None, key: Path) -> None:
    """The guest's sshd knows the key some time after it first answers."""
    deadline = time.monotonic() + _BOOT_S
    while time.monotonic() < deadline:
        if subprocess.run([*_command(port, key), "true"], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(_LOOK_S)
    raise RuntimeError("the guest's sshd did not let us in")


def _prompt_s(port: int | None, key: Path) -> float:
    began = time.perf_counter()
    argv = [*_command(port, key), "-tt"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        said = b""
        while _PROMPT not in said:
            piece = child.stdout.read1(4096)  # type: ignore[attr-defined]
            if not piece:
                raise RuntimeError(f"no prompt, but {said!r}")
            said += piece
        seconds = time.perf_counter() - began
        child.stdin.write(b"exit\n")
        child.stdin.close()
        child.stdout.read()
    return seconds


def _command(port: int | None, key: Path) -> list[str]:
    return ["ssh", *ssh.ALONE, "-i", str(key), "-p", str(port), "root@127.0.0.1"]
