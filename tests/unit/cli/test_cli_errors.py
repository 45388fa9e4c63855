"""What the command says when it cannot: one sentence on stderr, what to do next, and an exit code by kind."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hatchvm.base.errors import Corrupt, Exhausted, HatchError, Unavailable
from hatchvm.testing.command import Cli
from hatchvm.testing.live import Live

pytest_plugins = ["hatchvm.testing.cli_fixtures"]


@pytest.fixture
def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def trouble(live: Live) -> Iterator[Callable[[HatchError], None]]:
    yield lambda error: setattr(live.house, "trouble", error)
    live.house.trouble = None


@pytest.mark.parametrize(
    ("argv", "code", "sentence"),
    [
        (["vm", "get", "vm-000000000000"], 4, "vm not found (`list` shows what there is)"),
        (["image", "delete", "no such"], 4, "image not found (`list` shows what there is)"),
        (["vm", "create", "--vcpus", "99"], 2, "vcpu_count: must be at most 32 (--help says what is expected)"),
        (["vm", "create", "--vcpus", "two"], 2, "--vcpus"),
        (["vm", "create", "--metadata", "nope"], 2, "--metadata must be KEY=VALUE"),
        (["vm", "create", "--user-data", "no-such-file"], 2, "--user-data no-such-file: No such file or directory"),
        (["vm", "get"], 2, "VM"),
        (["vm", "crate"], 2, 'Did you mean "create"?'),
        (["vms"], 2, 'there is no command "vms"; did you mean "vm"?'),
        (["--loud"], 2, 'there is no option "--loud"'),
        (["image", "build", "huge"], 2, "tiny"),
    ],
)
def test_mistakes(cli: Cli, argv: list[str], code: int, sentence: str) -> None:
    outcome = cli(*argv)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err.startswith("hatchvm: ")
    assert sentence in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_state_that_forbids_it(cli: Cli) -> None:
    cli("vm", "create", "--name", "awake")
    vm_id = cli("vm", "list").out.splitlines()[1].split()[0]
    outcome = cli("vm", "restore", vm_id)
    assert outcome.code == 5
    assert 'vm is in state "running"; it cannot be restored now' in outcome.err


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (Exhausted("no memory left", retry_after_s=30), 8, "no memory left (try again in 30 s)"),
        (Unavailable("snapshot storage not configured"), 8, "snapshot storage not configured"),
        (Corrupt("the snapshot is damaged"), 8, "the snapshot is damaged"),
    ],
)
def test_what_the_daemon_cannot_do(
    cli: Cli, trouble: Callable[[HatchError], None], error: HatchError, code: int, sentence: str
) -> None:
    trouble(error)
    outcome = cli("vm", "create")
    assert (outcome.code, outcome.err) == (code, f"hatchvm: {sentence}\n")


def test_no_daemon(bare_cli: Cli, closed_port: int) -> None:
    outcome = bare_cli("health", "--url", f"http://127.0.0.1:{closed_port}")
    assert outcome.code == 8
    assert "is `hatchvm serve` running?" in outcome.err


def test_the_daemons_own_address_is_the_default(
    bare_cli: Cli, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HATCH_HTTP_ADDR", f"0.0.0.0:{closed_port}")
    assert f"nothing answers at http://127.0.0.1:{closed_port};" in bare_cli("health").err
    monkeypatch.setenv("HATCH_HTTP_ADDR", "8080")
    outcome = bare_cli("health")
    assert outcome.code == 2
    assert "HATCH_HTTP_ADDR must be host:port" in outcome.err


def test_without_a_key(bare_cli: Cli, live: Live) -> None:
    outcome = bare_cli("vm", "list", "--url", live.url)
    assert outcome.code == 3
    assert outcome.err.startswith("hatchvm: missing or invalid API key (set HATCH_API_KEY")


def test_the_key_of_the_data_directory(
    bare_cli: Cli, live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HATCH_URL", live.url)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "api-key").write_text(live.key + "\n")
    assert bare_cli("vm", "list").code == 0
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "api-key").write_text("hatch_wrong")
    monkeypatch.setenv("HATCH_DATA_DIR", "elsewhere")
    assert bare_cli("vm", "list").code == 3
    monkeypatch.setenv("HATCH_API_KEY", live.key)
    assert bare_cli("vm", "list").code == 0


def test_something_else_answers(bare_cli: Cli, live: Live) -> None:
    outcome = bare_cli("health", "--url", f"{live.url}/docs?")
    assert outcome.code != 0
    assert outcome.err.startswith("hatchvm: ")
