"""`hatchvm demo` as a user runs it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hatchvm.testing.guest import DEADLINE_S, wait_for

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("vm")]

HATCHVM = str(Path(sys.executable).with_name("hatchvm"))


def of_folder(folder: Path) -> list[str]:
    """Processes whose command line or working directory speaks of it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode() + str((process / "cwd").readlink())
        except OSError:
            continue
        if str(folder) in words:
            found.append(words)
    return found


def test_every_step_holds(tmp_path: Path) -> None:
    run = subprocess.run(
        [HATCHVM, "demo", "--once"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE_S,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    steps = re.findall(r"^  (\w[\w ]+?) +[\d.]+ m?s  ", run.stdout, re.MULTILINE)
    assert steps == "image tiny,start Hatch,create a VM,cold boot,warm request,fall asleep,store,wake".split(",")
    assert list(tmp_path.iterdir()) == []
    assert of_folder(tmp_path) == []


def test_ctrl_c_ends_it_and_everything_it_started(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([HATCHVM, "demo"], env=environment, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        wait_for(lambda: "create a VM" in str(demo.stdout and demo.stdout.readline()), "the VM is there")
        assert of_folder(tmp_path)
        demo.send_signal(signal.SIGINT)
        rest = demo.stdout.read()
        assert demo.wait(DEADLINE_S) == 0
    assert "Everything is stopped and removed." in rest
    assert list(tmp_path.iterdir()) == []
    assert of_folder(tmp_path) == []
