"""`hatchvm ssh` and `hatchvm ssh-key`."""

from __future__ import annotations

import json
import shlex
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from hatchvm.base.paths import DataPaths
from hatchvm.server.ssh_keys import ensure_ssh_keys
from hatchvm.testing.command import Cli
from hatchvm.testing.live import Live

pytest_plugins = ["hatchvm.testing.cli_fixtures"]

#: Made for these tests; its fingerprint is what `ssh-keygen -l` says.
LINE = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g"
FINGERPRINT = "SHA256:Cvc6vF8KG/H+gjg3qhw7DX6mLHTdvJNCqzbP6CmXHcw"


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> DataPaths:
    """A daemon's data directory, with its keys."""
    monkeypatch.setenv("HATCH_DATA_DIR", str(tmp_path))
    ensure_ssh_keys(DataPaths(tmp_path))
    return DataPaths(tmp_path)


def create(cli: Cli, name: str, *words: str) -> dict[str, str]:
    made = cli("vm", "create", "--json", "--name", name, *words)
    assert made.code == 0, made.err
    return dict(json.loads(made.out))


@pytest.mark.parametrize("call", ["id", "name", "subdomain"])
def test_the_command_line_of_ssh(cli: Cli, live: Live, paths: DataPaths, call: str) -> None:
    vm = create(cli, f"by-{call}")
    cli("route", "create", vm["id"], "--port", "80", "--subdomain", f"sub-{call}")
    called = {"id": vm["id"], "name": vm["name"], "subdomain": f"sub-{call}"}[call]
    shown = cli("ssh", "--print", called)
    assert shown.code == 0, shown.err
    assert shlex.split(shown.out) == [
        *("ssh", "-p", str(vm["ssh_port"]), "-i", str(paths.house_key), "-o", "IdentitiesOnly=yes"),
        *("-o", f'UserKnownHostsFile="{paths.known_hosts}"', "-o", f"HostKeyAlias={vm['id']}"),
        *("-o", "StrictHostKeyChecking=accept-new", "root@127.0.0.1"),
    ]


def test_a_command_a_login_and_a_terminal(cli: Cli, paths: DataPaths) -> None:
    create(cli, "with-command")
    shown = cli("ssh", "--print", "-l", "ann", "-t", "with-command", "--", "ls", "-la", "/a b")
    assert shlex.split(shown.out)[-5:] == ["-t", "ann@127.0.0.1", "ls", "-la", "/a b"]
    shown = cli("ssh", "--print", "with-command", "uptime")
    assert shlex.split(shown.out)[-2:] == ["root@127.0.0.1", "uptime"]


def test_an_unknown_vm(cli: Cli, paths: DataPaths) -> None:
    ran = cli("ssh", "nobody")
    assert (ran.code, ran.out) == (4, "")
    assert 'no VM is called "nobody"' in ran.err


def test_where_the_house_key_is_not(cli: Cli) -> None:
    vm = create(cli, "far-away")
    ran = cli("ssh", "far-away")
    assert ran.code == 2
    assert "hatchvm ssh-key add" in ran.err
    assert f"{vm['id']}@127.0.0.1" in ran.err


def test_a_vm_without_a_network(cli: Cli, live: Live, paths: DataPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = create(cli, "offline")
    rows = live.house.vm_rows
    rows.put(replace(rows[vm["id"]], ssh_port=None))
    ran = cli("ssh", "offline")
    assert (ran.code, "no network" in ran.err) == (5, True)


def test_ssh_keys(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "key.pub"
    file.write_text(f"{LINE} Ann@Laptop.local\n")
    added = cli("--json", "ssh-key", "add", str(file))
    assert added.code == 0, added.err
    key = json.loads(added.out)
    assert (key["name"], key["public_key"], key["fingerprint"]) == ("ann-laptop-local", LINE, FINGERPRINT)
    assert json.loads(cli("--json", "ssh-key", "list").out) == [key]
    again = cli("ssh-key", "add", str(file), "--name", "again")
    assert (again.code, "this SSH key is already in use" in again.err) == (5, True)
    assert cli("ssh-key", "delete", key["id"]).code == 0
    assert json.loads(cli("--json", "ssh-key", "list").out) == []


def test_the_usual_key_is_found(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    none = cli("ssh-key", "add")
    assert (none.code, "ssh-keygen" in none.err) == (2, True)
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/id_ed25519.pub").write_text(f"{LINE}\n")
    added = cli("--json", "ssh-key", "add")
    key = json.loads(added.out)
    assert (key["name"], key["fingerprint"]) == ("key", FINGERPRINT)
    cli("ssh-key", "delete", key["id"])


def test_a_private_key_stays_here(cli: Cli, live: Live, paths: DataPaths) -> None:
    ran = cli("ssh-key", "add", str(paths.house_key))
    assert (ran.code, "private key" in ran.err) == (2, True)
    secret = paths.house_key.read_text().splitlines()[1]
    assert secret not in ran.err
    assert not live.house.ssh_key_rows


def test_the_house_keys_are_made_once(tmp_path: Path) -> None:
    paths = DataPaths(tmp_path)
    line = ensure_ssh_keys(paths)
    assert line.startswith("ssh-ed25519 AAAA")
    assert paths.house_key.with_suffix(".pub").read_text() == f"{line}\n"
    assert stat.S_IMODE(paths.house_key.stat().st_mode) == stat.S_IMODE(paths.front_key.stat().st_mode) == 0o600
    before = paths.front_key.read_bytes()
    paths.house_key.with_suffix(".pub").unlink()
    assert ensure_ssh_keys(paths) == line
    assert paths.house_key.with_suffix(".pub").exists()
    assert paths.front_key.read_bytes() == before != paths.house_key.read_bytes()
