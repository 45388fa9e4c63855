"""Every command of the README and the tutorial is run, in order, against a daemon as they start it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hatchvm.cli.child import ChildDaemon

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("vm")]

ROOT = Path(__file__).resolve().parents[2]
#: Run elsewhere: by CI itself (`.ci/run`), and by the fixture below.
STARTED_OTHERWISE = {"make demo", "make test", "make serve"}


def commands(page: str) -> list[str]:
    """The lines of its `sh` blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ChildDaemon]:
    """A daemon over `data` in a folder that has what the pages' folder has."""
    for name in (".venv", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    daemon = ChildDaemon(tmp_path / "data", {"HATCH_ACCEL": "tcg"})
    daemon.start()
    yield daemon
    daemon.end()


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_every_command_of_the_page_works(page: str, served: ChildDaemon) -> None:
    lines = [line for line in commands(page) if line not in STARTED_OTHERWISE]
    assert len(lines) >= 5
    # The pages name the default ports; the daemon under test took free ones.
    script = "\n".join(["set -eux", *lines])
    script = script.replace(":9090", f":{served.proxy_port}").replace(
        ":8080/", f"{served.api[len('http://127.0.0.1') :]}/"
    )
    ended = subprocess.run(
        ["bash", "-c", script],
        cwd=served.paths.root.parent,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HATCH_HTTP_ADDR": served.api.removeprefix("http://"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
    assert "Hello from web" in ended.stdout


def test_what_is_started_otherwise_is_started() -> None:
    ci = (ROOT / ".ci/run").read_text()
    assert "make demo" in ci
    assert "make test" in ci
    assert "serve:" in (ROOT / "Makefile").read_text()
