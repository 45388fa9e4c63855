"""The command against a real daemon: what `--help` lists, done once each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hatchvm.cli.child import ChildDaemon
from hatchvm.testing.command import Cli
from hatchvm.testing.guest import MEM_MIB, Guest

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("vm")]
pytest_plugins = ["hatchvm.testing.cli_fixtures"]


@pytest.fixture
def cli(bare_cli: Cli, daemon: ChildDaemon, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Finds the daemon by its address, and the key in its data directory."""
    monkeypatch.setenv("HATCH_URL", daemon.api)
    monkeypatch.setenv("HATCH_DATA_DIR", str(daemon.paths.root))
    return bare_cli


def told(cli: Cli, *argv: str) -> Any:
    """What a command that must succeed says with `--json`."""
    run = cli(*argv, "--json")
    assert (run.code, run.err) == (0, "")
    return json.loads(run.out)


def test_the_life_of_a_vm(cli: Cli, guest: Guest) -> None:
    source = guest.sleep()["id"]
    vm = told(cli, "vm", "create", "--name", "cli", "--snapshot", source, "--metadata", "team=blue")
    assert (vm["state"], vm["metadata"]) == ("running", {"team": "blue"})
    assert [one["name"] for one in told(cli, "vm", "list")] == ["cli", "shared"]
    route = told(cli, "route", "create", vm["id"], "--port", "8080", "--subdomain", "cli")
    copy = Guest(guest.daemon, vm["id"], "cli")
    count = copy.count()

    snapshot = told(cli, "vm", "snapshot", vm["id"])
    assert snapshot["status"] == "committed"
    assert told(cli, "vm", "get", vm["id"])["state"] == "snapshotted"
    assert cli("vm", "snapshot", vm["id"]).code == 5
    assert [one["id"] for one in told(cli, "snapshot", "list", vm["id"])] == [snapshot["id"]]
    assert told(cli, "snapshot", "get", snapshot["id"]) == snapshot
    assert told(cli, "vm", "restore", vm["id"])["state"] == "running"
    assert copy.count() == count + 1

    assert told(cli, "route", "update", route["id"], "--no-auto-wake")["auto_wake"] is False
    assert told(cli, "vm", "stop", vm["id"])["state"] == "stopped"
    assert told(cli, "vm", "start", vm["id"])["state"] == "running"
    assert told(cli, "snapshot", "delete", snapshot["id"]) == {"status": "deleted"}
    assert told(cli, "route", "delete", route["id"]) == {"status": "deleted"}
    assert [one["subdomain"] for one in told(cli, "route", "list")] == ["shared"]
    assert told(cli, "vm", "delete", vm["id"]) == {"status": "deleted"}
    assert cli("vm", "get", vm["id"]).code == 4


def test_images_templates_and_keys(cli: Cli, daemon: ChildDaemon) -> None:
    tiny = told(cli, "image", "get", "tiny")
    # Whatever else this user has built is offered, too.
    known = {one["name"] for one in told(cli, "image", "list")}
    files = ["--kernel", tiny["kernel_path"], "--initrd", tiny["initrd_path"]]
    image = told(cli, "image", "create", *files, "--name", "mine")
    assert {one["name"] for one in told(cli, "image", "list")} == known | {"mine"}
    template = told(cli, "template", "create", "small", "--image", "mine", "--mem-mib", str(MEM_MIB))
    vm = told(cli, "vm", "create", "--template", "small")
    assert (vm["image_id"], vm["mem_mib"]) == (image["id"], MEM_MIB)
    assert "in use" in cli("image", "delete", "mine").err
    for thing, name in (("vm", vm["id"]), ("template", template["id"]), ("image", "mine")):
        assert told(cli, thing, "delete", name) == {"status": "deleted"}

    key = told(cli, "key", "create", "second")
    assert [one["name"] for one in told(cli, "key", "list")] == ["second", "first key"]
    told(cli, "key", "delete", key["id"])


def test_people_get_tables(cli: Cli, guest: Guest) -> None:
    run = cli("vm", "list")
    assert run.code == 0
    assert run.out.split("\n")[0].split()[:3] == ["ID", "NAME", "STATE"]
    assert guest.id in run.out
    assert cli("health").code == 0


def test_the_doctor_finds_a_host_that_can(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = {one["subject"]: one["verdict"] for one in told(cli, "doctor")}
    assert findings["QEMU"] == "ok"
