"""Every command, for people and for programs."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hatchvm.base.errors import Unavailable
from hatchvm.domain.image import Boot, Builtin, Image
from hatchvm.images import builtin
from hatchvm.ports.house import PendingUpload
from hatchvm.testing.command import Cli
from hatchvm.testing.house import START
from hatchvm.testing.live import Live

pytest_plugins = ["hatchvm.testing.cli_fixtures"]


@pytest.fixture
def vm(cli: Cli) -> dict[str, Any]:
    made = cli("vm", "create", "--json")
    assert made.code == 0
    return dict(json.loads(made.out))


def ask(cli: Cli, *argv: str) -> Any:
    """The JSON that a command prints."""
    outcome = cli("--json", *argv)
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_vm_create_passes_every_option_on(cli: Cli, live: Live, tmp_path: Path) -> None:
    (tmp_path / "init.yaml").write_text("#cloud-config\n")
    options = {
        "--name": "all-options",
        "--image": "tiny",
        "--vcpus": "2",
        "--mem-mib": "64",
        "--boot-args": "quiet",
        "--guest-ip": "172.16.0.9",
        "--guest-mac": "06:00:ac:10:00:09",
        "--user-data": "init.yaml",
        "--idle-timeout": "never",
    }
    flat = [word for pair in options.items() for word in pair]
    vm = ask(cli, "vm", "create", *flat, "--no-network", "--metadata", "a=b", "--metadata", "c=d=e")
    asked = {
        "name": "all-options",
        "vcpu_count": 2,
        "mem_mib": 64,
        "boot_args": "quiet",
        "guest_ip": "172.16.0.9",
        "guest_mac": "06:00:ac:10:00:09",
        "idle_timeout": "never",
        "enable_network": False,
        "metadata": {"a": "b", "c": "d=e"},
    }
    assert vm | asked == vm
    assert live.house.user_data[vm["id"]] == "#cloud-config\n"


def test_user_data_from_standard_input(cli: Cli, live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("#!/bin/sh\n"))
    vm = ask(cli, "vm", "create", "--user-data", "-")
    assert live.house.user_data[vm["id"]] == "#!/bin/sh\n"


def test_a_vms_life(cli: Cli, vm: dict[str, Any], live: Live) -> None:
    assert ask(cli, "vm", "get", vm["id"]) == vm
    assert vm["id"] in [row["id"] for row in ask(cli, "vm", "list")]
    snapshot = ask(cli, "vm", "snapshot", vm["id"])
    assert ask(cli, "snapshot", "list", vm["id"]) == [snapshot]
    assert ask(cli, "snapshot", "get", snapshot["id"]) == snapshot
    assert ask(cli, "vm", "create", "--snapshot", snapshot["id"])["state"] == "running"
    assert ask(cli, "vm", "restore", vm["id"], "--snapshot", snapshot["id"])["state"] == "running"
    assert vm["id"] not in live.house.disk_restores
    ask(cli, "vm", "snapshot", vm["id"])
    assert ask(cli, "vm", "restore", "--disk", vm["id"])["state"] == "running"
    assert live.house.disk_restores[-1] == vm["id"]
    assert ask(cli, "snapshot", "delete", snapshot["id"]) == {"status": "deleted"}
    assert ask(cli, "vm", "stop", vm["id"])["state"] == "stopped"
    assert ask(cli, "vm", "start", vm["id"])["state"] == "running"
    assert ask(cli, "vm", "delete", vm["id"]) == {"status": "deleted"}


def test_routes(cli: Cli, vm: dict[str, Any]) -> None:
    route = ask(cli, "route", "create", vm["id"], "--port", "8080", "--subdomain", "cli-app", "--no-auto-wake")
    assert (route["subdomain"], route["target_port"], route["auto_wake"]) == ("cli-app", 8080, False)
    assert ask(cli, "route", "list", vm["id"]) == [route]
    assert route in ask(cli, "route", "list")
    changed = ask(cli, "route", "update", route["id"], "--auto-wake", "--port", "81")
    assert (changed["subdomain"], changed["target_port"], changed["auto_wake"]) == ("cli-app", 81, True)
    assert ask(cli, "route", "delete", route["id"]) == {"status": "deleted"}


def test_custom_domains(cli: Cli, vm: dict[str, Any], live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    route = ask(cli, "route", "create", vm["id"], "--port", "80", "--domain", "cli.example.com")
    assert (route["domain"], route["domain_verified"]) == ("cli.example.com", False)
    unproven = cli("route", "verify", route["id"])
    assert unproven.code == 5
    assert route["domain_challenge"]["value"] in unproven.err
    monkeypatch.setattr(live.house.routes, "texts", [route["domain_challenge"]["value"]])
    assert ask(cli, "route", "verify", route["id"])["domain_verified"] is True
    head, row, *_ = cli("route", "list", vm["id"]).out.splitlines()
    assert " ".join(head.split()) == "ID VM SUBDOMAIN DOMAIN DOMAIN VERIFIED TARGET PORT AUTO WAKE URL"
    assert row.split()[3:5] == ["cli.example.com", "yes"]
    changed = ask(cli, "route", "update", route["id"], "--domain", "other.example.com")
    assert (changed["domain"], changed["domain_verified"]) == ("other.example.com", False)
    assert changed["domain_challenge"]["name"] in cli("route", "update", route["id"], "--port", "81").out
    both = cli("route", "update", route["id"], "--no-domain", "--domain", "x.example.com")
    assert (both.code, "give one of the two" in both.err) == (2, True)
    assert ask(cli, "route", "update", route["id"], "--no-domain")["domain"] is None


def test_a_built_image_is_registered_with_the_daemon(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    async def build(name: Builtin, cache: Path, progress: Callable[[str], None]) -> Image:
        progress("building")
        boot = Boot(kernel=cache / "kernel", initrd=None, rootfs=None, rootfs_format="raw", boot_args="")
        return Image(id="img-1", name=name, boot=boot, digest="00", size_bytes=1, created_at=START, builtin=True)

    monkeypatch.setattr(builtin, "build", build)
    tiny = cli("image", "build", "tiny")
    assert tiny.code == 0
    assert tiny.err.startswith("building\n") and 'knows it as "tiny"' in tiny.err
    debian = cli("image", "build", "debian")
    assert debian.code == 0
    assert "did not register it" in debian.err and "not in the cache" in debian.err
    nobody = cli("--url", "http://127.0.0.1:1", "image", "build", "debian")
    assert nobody.code == 0
    assert "no daemon answers" in nobody.err


def test_images(cli: Cli, tmp_path: Path) -> None:
    image = ask(cli, "image", "create", "--kernel", "vmlinuz", "--rootfs", "/srv/root.raw", "--name", "cli-image")
    assert image["kernel_path"] == str(tmp_path / "vmlinuz")
    assert image["rootfs_path"] == "/srv/root.raw"
    assert ask(cli, "image", "get", "cli-image") == image
    assert image in ask(cli, "image", "list")
    assert ask(cli, "image", "delete", "cli-image") == {"status": "deleted"}


def test_templates(cli: Cli) -> None:
    template = ask(cli, "template", "create", "cli-template", "--mem-mib", "64", "--no-network")
    assert template["defaults"] == {"mem_mib": 64, "enable_network": False}
    assert ask(cli, "template", "get", "cli-template") == template
    assert ask(cli, "template", "list") == [template]
    assert ask(cli, "vm", "create", "--template", "cli-template")["mem_mib"] == 64
    assert ask(cli, "template", "delete", "cli-template") == {"status": "deleted"}


def test_keys(cli: Cli) -> None:
    key = ask(cli, "key", "create", "ci")
    assert key["key"].startswith("hatch_")
    assert key["key"] not in cli("key", "list", "--json").out
    assert ask(cli, "key", "delete", key["id"]) == {"status": "deleted"}


def test_health(cli: Cli) -> None:
    assert ask(cli, "health")["status"] == "ok"


def test_status(cli: Cli, vm: dict[str, Any], live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    calm = cli("status")
    assert calm.code == 0
    told = dict(line.split("  ", 1) for line in calm.out.splitlines())
    assert (told["status"].strip(), told["store"].strip()) == ("ready", "directory")
    assert "running" in told["vms"]
    assert told["not stored yet"].strip() == "no snapshot"
    waits = PendingUpload(
        vm_id=vm["id"],
        snapshot_id="snap-000000000001",
        since=START,
        waited_s=3661.4,
        error="the store is down",
        uploading=False,
        retry_at=START,
    )
    monkeypatch.setattr(live.house, "uploads", [waits])
    shown = cli("status").out
    assert "1 snapshot, the oldest for 1h1m1s" in shown
    head, row = shown.splitlines()[-2:]
    assert head.split() == "VM SNAPSHOT PENDING SINCE UPLOADING NEXT RETRY AT ERROR".split()
    moment = "2026-03-06T14:30:00Z"
    assert row.split() == [vm["id"], "snap-000000000001", moment, "no", moment, *"the store is down".split()]
    assert ask(cli, "status")["uploads"][0]["error"] == "the store is down"

    async def unready() -> None:
        raise Unavailable("not ready: the store is down")

    monkeypatch.setattr(live.house, "ready", unready)
    trouble = cli("status")
    assert trouble.code == 8
    assert "not ready: the store is down" in trouble.out
    assert row in trouble.out
    trouble = cli("--json", "status")
    assert (trouble.code, json.loads(trouble.out)["reason"]) == (8, "not ready: the store is down")


def test_tables_for_people(cli: Cli, vm: dict[str, Any]) -> None:
    table = cli("vm", "list")
    head, first, *_ = table.out.splitlines()
    assert " ".join(head.split()) == "ID NAME STATE IMAGE VCPU COUNT MEM MIB SSH PORT LAST ACTIVE AT"
    assert first.split()[:3] == [vm["id"], "-", "running"]
    assert "\x1b" not in table.out
    fields = [line.split(maxsplit=1) for line in cli("vm", "get", vm["id"]).out.splitlines()]
    assert ["enable_network", "yes"] in [[name, value.strip()] for name, value in fields]
    assert cli("vm", "delete", vm["id"]).out == f"{vm['id']} deleted\n"
    assert cli("vm", "get", vm["id"]).out == ""


def test_an_empty_list_is_no_table(cli: Cli) -> None:
    outcome = cli("template", "list")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "none\n")
    assert ask(cli, "template", "list") == []


def test_what_a_guest_says_does_not_drive_the_terminal(cli: Cli, vm: dict[str, Any], live: Live) -> None:
    rows = live.house.vm_rows
    rows.put(replace(rows[vm["id"]], state_reason="panic \x1b[31m[bold]\x07"))
    shown = cli("vm", "get", vm["id"]).out
    assert "panic \N{REPLACEMENT CHARACTER}[31m[bold]\N{REPLACEMENT CHARACTER}" in shown
