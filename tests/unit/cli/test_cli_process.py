"""The installed command as a process: what it loads, where it writes, how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hatchvm.testing.live import Live

pytest_plugins = ["hatchvm.testing.cli_fixtures"]

HATCHVM = str(Path(sys.executable).with_name("hatchvm"))
HEAVY = ("fastapi", "pydantic", "sqlalchemy", "uvicorn", "httpx2", "rich", "cyclopts", "asyncio")


def hatchvm(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | environment
    return subprocess.run([HATCHVM, *argv], env=env, capture_output=True, text=True, timeout=60, check=False)


def loaded_by(code: str) -> set[str]:
    """Names of the top-level modules that `code` loads."""
    script = f"{code}\nimport sys; print('LOADED', *{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    return set(run.stdout.rsplit("LOADED", 1)[1].split())


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["--version"], []])
def test_the_first_page_loads_nothing_heavy(argv: list[str]) -> None:
    loaded = loaded_by(f"from hatchvm.cli.main import run\nassert run({argv!r}) == 0")
    assert loaded.isdisjoint(HEAVY)


def test_a_groups_help_loads_no_server_and_no_client() -> None:
    loaded = loaded_by("from hatchvm.cli.main import run\nassert run(['key', '--help']) == 0")
    assert "cyclopts" in loaded
    assert loaded.isdisjoint({"fastapi", "pydantic", "sqlalchemy", "uvicorn"})


def test_help_names_every_command() -> None:
    page = hatchvm("--help")
    assert (page.returncode, page.stderr) == (0, "")
    for command in "serve demo doctor vm route snapshot image template key events health".split():
        assert f"\n  {command} " in page.stdout


def test_a_whole_run(live: Live) -> None:
    run = hatchvm("vm", "create", "--json", HATCH_URL=live.url, HATCH_API_KEY=live.key)
    assert (run.returncode, run.stderr) == (0, "")
    assert json.loads(run.stdout)["state"] == "running"


def test_errors_go_to_stderr(live: Live) -> None:
    run = hatchvm("vm", "get", "vm-000000000000", HATCH_URL=live.url, HATCH_API_KEY=live.key)
    assert (run.returncode, run.stdout) == (4, "")
    assert run.stderr.startswith("hatchvm: vm not found")


def test_a_reader_that_leaves_is_no_error_message(live: Live) -> None:
    """`hatchvm ... | true`: the pipe is closed before the command writes."""
    env = os.environ | {"HATCH_URL": live.url, "HATCH_API_KEY": live.key, "PYTHONUNBUFFERED": "1"}
    reader, writer = os.pipe()
    os.close(reader)
    command = [HATCHVM, "health"]
    with os.fdopen(writer) as stdout:
        run = subprocess.run(command, env=env, stdout=stdout, stderr=subprocess.PIPE, timeout=60, check=False)
    assert (run.returncode, run.stderr) == (141, b"")


def test_events_are_printed_as_they_happen(live: Live) -> None:
    env = os.environ | {"HATCH_URL": live.url, "HATCH_API_KEY": live.key}
    vm_id = json.loads(hatchvm("vm", "create", "--json", HATCH_URL=live.url, HATCH_API_KEY=live.key).stdout)["id"]
    listening = live.house.events.subscribed
    listening.clear()
    with subprocess.Popen([HATCHVM, "events", "--vm", vm_id], env=env, stdout=subprocess.PIPE, text=True) as process:
        assert listening.wait(60)
        hatchvm("vm", "stop", vm_id, HATCH_URL=live.url, HATCH_API_KEY=live.key)
        assert process.stdout is not None
        assert process.stdout.readline().split()[1:4] == [vm_id, "stopped", "vm.state"]
        process.terminate()
