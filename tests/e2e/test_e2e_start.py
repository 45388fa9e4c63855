"""Starts that cannot be: a sentence that names what is wrong, and an exit code."""

from __future__ import annotations

import socket
import ssl
import time
from pathlib import Path

import pytest

from hatchvm.base.errors import Unavailable
from hatchvm.cli.child import ChildDaemon
from hatchvm.telemetry import logs
from hatchvm.testing.command import Cli
from hatchvm.testing.edge.tls import make_pair, trusting

pytest_plugins = ["hatchvm.testing.cli_fixtures"]

WRONG = {
    "HATCH_HTTP_ADDR": "8080",
    "HATCH_PROXY_ADDR": "127.0.0.1:http",
    "HATCH_TLS_ADDR": "443",
    "HATCH_TLS_CERT": "/nowhere/c.pem",
    "HATCH_TLS_KEY": "/nowhere/c.key",
    "HATCH_BASE_DOMAIN": "not a domain",
    "HATCH_PROXY_BASE_DOMAIN": "-",
    "HATCH_VMM": "xen",
    "HATCH_ACCEL": "turbo",
    "HATCH_NETWORK": "token-ring",
    "HATCH_DEFAULT_VCPU": "many",
    "HATCH_DEFAULT_MEM_MIB": "16",
    "HATCH_SSH_PORT_MIN": "0",
    "HATCH_SSH_PORT_MAX": "65536",
    "HATCH_IDLE_CHECK_INTERVAL": "0s",
    "HATCH_IDLE_TIMEOUT": "30",
    "HATCH_PROXY_WAKE_TIMEOUT": "-1s",
    "HATCH_WAKE_TIMEOUT": "soon",
    "HATCH_STREAM_IDLE_TIMEOUT": "1y",
    "HATCH_SNAPSHOT_KEEP": "0",
    "HATCH_LOG_LEVEL": "loud",
    "HATCH_LOG_FORMAT": "xml",
    "DATABASE_URL": "garbage",
    "HATCH_AUTH_VERIFY_URL": "garbage",
    "HATCH_DATA_DIR": "/proc/nowhere",
    "HATCH_DEFAULT_KERNEL_PATH": "/nowhere/vmlinux",
}


@pytest.mark.parametrize("variable", WRONG)
def test_a_setting_that_does_not_parse(variable: str, bare_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, WRONG[variable])
    run = bare_cli("serve")
    assert run.code != 0
    assert variable.replace("PROXY_BASE", "BASE") in run.err
    assert len(run.err.splitlines()) == 1


def test_ports_the_wrong_way_round(bare_cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATCH_SSH_PORT_MIN", "17000")
    monkeypatch.setenv("HATCH_SSH_PORT_MAX", "16000")
    run = bare_cli("serve")
    assert run.code == 2
    assert "HATCH_SSH_PORT_MIN is above HATCH_SSH_PORT_MAX" in run.err


def test_a_data_directory_that_is_a_file(bare_cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("HATCH_DATA_DIR", str(file))
    run = bare_cli("serve")
    assert run.code != 0
    assert "HATCH_DATA_DIR" in run.err


@pytest.mark.parametrize("variable", ["HATCH_HTTP_ADDR", "HATCH_PROXY_ADDR"])
def test_a_port_in_use(variable: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        daemon = ChildDaemon(tmp_path / "data", {variable: f"127.0.0.1:{stranger.getsockname()[1]}"})
        with pytest.raises(Unavailable, match=f"{variable}: cannot listen on 127.0.0.1:.*in use"):
            daemon.start()


def asked(port: int, trust: ssl.SSLContext) -> bytes:
    """The daemon's answer to a client that trusts so far."""
    host = "nobody.hatch.localhost"
    with socket.create_connection(("127.0.0.1", port)) as tcp, trust.wrap_socket(tcp, server_hostname=host) as client:
        client.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_a_certificate_that_cannot_serve(bare_cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HATCH_TLS_CERT", str(make_pair(tmp_path, "c", []).certificate))
    monkeypatch.setenv("HATCH_TLS_KEY", str(make_pair(tmp_path, "other", []).key))
    run = bare_cli("serve")
    assert run.code == 2
    assert "HATCH_TLS_CERT, HATCH_TLS_KEY: " in run.err
    assert "do not belong together" in run.err


def test_a_daemon_serves_tls_and_takes_up_a_new_certificate(tmp_path: Path) -> None:
    old = make_pair(tmp_path, "c", ["*.hatch.localhost"])
    settings = {"HATCH_TLS_CERT": str(old.certificate), "HATCH_TLS_KEY": str(old.key), "HATCH_TLS_ADDR": "127.0.0.1:0"}
    daemon = ChildDaemon(tmp_path / "data", settings)
    daemon.start()
    try:
        port = next(event["port"] for event in daemon.log() if event["msg"] == logs.TLS_LISTENING)
        assert b"no route for subdomain" in asked(port, trusting(old))
        trust = trusting(make_pair(tmp_path, "c", ["*.hatch.localhost"]))
        while True:
            try:
                assert b"no route for subdomain" in asked(port, trust)
                break
            except ssl.SSLCertVerificationError:  # it still serves the old one
                time.sleep(0.05)
    finally:
        daemon.stop()


@pytest.mark.vm
@pytest.mark.xdist_group("vm")
def test_a_second_daemon_on_the_same_data(daemon: ChildDaemon) -> None:
    second = ChildDaemon(daemon.paths.root, {})
    second.log_file = daemon.log_file.with_name("second.log")
    with pytest.raises(Unavailable, match="HATCH_DATA_DIR: another Hatch runs on"):
        second.start()
    with daemon.client() as client:
        client.list_vms()
