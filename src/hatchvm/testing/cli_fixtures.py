"""Fixtures: the command against a real server over a house in memory. A plugin, as `api_fixtures` is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hatchvm.cli.main import run
from hatchvm.testing.command import Cli, Outcome
from hatchvm.testing.house import FakeHouse
from hatchvm.testing.live import Live, serve


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the machine leaks in; the working directory is empty."""
    for name in ("HATCH_URL", "HATCH_HTTP_ADDR", "HATCH_API_KEY", "HATCH_DATA_DIR", "HATCH_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    with serve(FakeHouse()) as live:
        yield live


@pytest.fixture
def bare_cli(clean_environment: None, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Run a command line in this process."""

    def call(*argv: str) -> Outcome:
        code = run(argv)
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return call


@pytest.fixture
def cli(bare_cli: Cli, live: Live, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The same, with the daemon and key in the environment."""
    monkeypatch.setenv("HATCH_URL", live.url)
    monkeypatch.setenv("HATCH_API_KEY", live.key)
    return bare_cli
