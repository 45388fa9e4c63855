"""The configuration: every variable parses, refuses with its own name, and is the one its page describes."""

from __future__ import annotations

import os
import re
from ipaddress import IPv4Interface, IPv6Network
from pathlib import Path
from typing import Final

import pytest
from pydantic import AliasChoices, SecretStr

from hatchvm.base.errors import Invalid
from hatchvm.net.bridge.settings import parse_allow
from hatchvm.server.config import Config, load

PAGE: Final = Path(__file__).parents[3] / "docs" / "reference" / "configuration.md"
FIRECRACKER: Final = {"HATCH_VMM": "firecracker", "HATCH_NETWORK": "bridge"}
#: variable -> others that it needs to be set, or not to be.
WITH: Final[dict[str, dict[str, str]]] = {
    "HATCH_TLS_ADDR": {"HATCH_TLS_CERT": "/c.pem", "HATCH_TLS_KEY": "/k.pem"},
    "HATCH_TLS_CERT": {"HATCH_TLS_KEY": "/k.pem,/l.pem"},
    "HATCH_TLS_KEY": {"HATCH_TLS_CERT": "/c.pem"},
    "HATCH_S3_ENDPOINT": {"HATCH_S3_BUCKET": "my-bucket"},
    "HATCH_S3_REGION": {"HATCH_S3_BUCKET": "my-bucket"},
    "HATCH_S3_ACCESS_KEY": {"HATCH_S3_BUCKET": "my-bucket", "HATCH_S3_SECRET_KEY": "secret"},
    "HATCH_S3_SECRET_KEY": {"HATCH_S3_BUCKET": "my-bucket", "HATCH_S3_ACCESS_KEY": "key"},
    "HATCH_S3_PATH_STYLE": {"HATCH_S3_BUCKET": "my-bucket"},
    "HATCH_S3_PREFIX": {"HATCH_S3_BUCKET": "my-bucket"},
    "HATCH_BRIDGE_NAME": {"HATCH_NETWORK": "bridge"},
    "HATCH_BRIDGE_CIDR": {"HATCH_NETWORK": "bridge"},
    "HATCH_BRIDGE_ALLOW": {"HATCH_NETWORK": "bridge"},
    "HATCH_NETNS": {"HATCH_NETWORK": "bridge"},
    "HATCH_VMM": {"HATCH_NETWORK": "bridge"},
    "HATCH_HUGE_PAGES": FIRECRACKER,
    "HATCH_DISK_RATE": FIRECRACKER,
    "HATCH_NET_RATE": FIRECRACKER,
}
#: variable -> (a value, what it means)
GOOD: Final[dict[str, tuple[str, object]]] = {
    "HATCH_HTTP_ADDR": ("[::1]:81", ("::1", 81)),
    "HATCH_PROXY_ADDR": (":0", ("0.0.0.0", 0)),
    "HATCH_PROXY_WORKERS": ("4", 4),
    "HATCH_BASE_DOMAIN": ("Hatch.Example.com., x", ("hatch.example.com", "x")),
    "HATCH_DNS_SERVER": ("[2001:db8::53]:5353", ("2001:db8::53", 5353)),
    "HATCH_ACCESS_LOG": ("0.01", 0.01),
    "HATCH_TLS_ADDR": (":443", ("0.0.0.0", 443)),
    "HATCH_TLS_CERT": ("/c.pem, d.pem", (Path("/c.pem"), Path("d.pem"))),
    "HATCH_TLS_KEY": ("/k.pem,", (Path("/k.pem"),)),
    "HATCH_DATA_DIR": ("/d", Path("/d")),
    "HATCH_CACHE_DIR": ("/c", Path("/c")),
    "DATABASE_URL": ("sqlite:////x.db", "sqlite:////x.db"),
    "HATCH_SNAPSHOT_STORE": ("none", "none"),
    "HATCH_S3_BUCKET": ("my-bucket", "my-bucket"),
    "HATCH_S3_ENDPOINT": ("http://127.0.0.1:9000/", "http://127.0.0.1:9000"),
    "HATCH_S3_REGION": ("eu-central-1", "eu-central-1"),
    "HATCH_S3_ACCESS_KEY": ("key", "key"),
    "HATCH_S3_SECRET_KEY": ("secret", SecretStr("secret")),
    "HATCH_S3_PATH_STYLE": ("false", "false"),
    "HATCH_S3_PREFIX": ("/hatch/one", "hatch/one/"),
    "HATCH_SNAPSHOT_KEEP": ("1", 1),
    "HATCH_LAZY_RESTORE": ("never", "never"),
    "HATCH_SNAPSHOT_GRACE": ("2h", 7200.0),
    "HATCH_SNAPSHOT_KEY_FILE": ("/keys", Path("/keys")),
    "HATCH_VMM": ("firecracker", "firecracker"),
    "HATCH_ACCEL": ("tcg", "tcg"),
    "HATCH_QEMU_BIN": ("/q", "/q"),
    "HATCH_FIRECRACKER_BIN": ("/f", "/f"),
    "HATCH_FIRECRACKER_BINS": ("/old/f:f2:", ("/old/f", "f2")),
    "HATCH_JAILER_BIN": ("/j", "/j"),
    "HATCH_JAIL": ("off", "off"),
    "HATCH_JAIL_UIDS": ("70000-70001", range(70000, 70002)),
    "HATCH_HUGE_PAGES": ("2M", "2M"),
    "HATCH_DISK_RATE": ("1.5GiB", 3 << 29),
    "HATCH_NET_RATE": ("10 MiB", 10 << 20),
    "HATCH_NETWORK": ("user", "user"),
    "HATCH_BRIDGE_NAME": ("br-x", "br-x"),
    "HATCH_BRIDGE_CIDR": ("198.18.0.1/15", IPv4Interface("198.18.0.1/15")),
    "HATCH_BRIDGE_ALLOW": ("198.18.0.1:80, 192.0.2.0/24", parse_allow("198.18.0.1:80,192.0.2.0/24")),
    "HATCH_NETNS": ("hatch", "hatch"),
    "HATCH_CONNTRACK_PATH": ("/t", Path("/t")),
    "HATCH_SSH_ALLOWED_CIDR": ("2001:db8::/32", (IPv6Network("2001:db8::/32"),)),
    "HATCH_SSH_ADDR": (":2222", ("0.0.0.0", 2222)),
    "HATCH_DEFAULT_KERNEL_PATH": ("/k", "/k"),
    "HATCH_DEFAULT_ROOTFS_PATH": ("/r", "/r"),
    "HATCH_DEFAULT_BOOT_ARGS": ("quiet", "quiet"),
    "HATCH_DEFAULT_VCPU": ("32", 32),
    "HATCH_DEFAULT_MEM_MIB": ("32", 32),
    "HATCH_SSH_PORT_MIN": ("1", 1),
    "HATCH_SSH_PORT_MAX": ("65535", 65535),
    "HATCH_IDLE_CHECK_INTERVAL": ("250ms", 0.25),
    "HATCH_IDLE_TIMEOUT": ("1h30m", 5400.0),
    "HATCH_DOMAIN_RECHECK": ("0", 0.0),
    "HATCH_PROXY_WAKE_TIMEOUT": ("1m", 60.0),
    "HATCH_WAKE_TIMEOUT": ("1.5m", 90.0),
    "HATCH_STREAM_IDLE_TIMEOUT": ("1s", 1.0),
    "HATCH_AUTH_VERIFY_URL": ("https://keys.example/verify", SecretStr("https://keys.example/verify")),
    "HATCH_LOG_LEVEL": ("debug", "debug"),
    "HATCH_LOG_FORMAT": ("console", "console"),
    "HATCH_NODE_ID": ("n1", "n1"),
}
BAD: Final[dict[str, list[str]]] = {
    "HATCH_HTTP_ADDR": ["8080", "127.0.0.1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", ":-1", ":²"],
    "HATCH_PROXY_ADDR": ["9090"],
    "HATCH_ACCESS_LOG": ["yes", "1.5", "-1", "nan"],
    "HATCH_TLS_ADDR": ["443"],
    "HATCH_PROXY_WORKERS": ["-1", "9", "many"],
    "HATCH_BASE_DOMAIN": [",", "a..b", "-a", "a_b", "a b", "http://a", "x" * 64, "ä"],
    "HATCH_DNS_SERVER": [
        "ns.example.com",
        "localhost:53",
        "192.0.2.53:x",
        "192.0.2.53:",
        "192.0.2.256",
        "[::1",
        ":53",
        "192.0.2.53:0",
    ],
    "HATCH_DOMAIN_RECHECK": ["1d", "-1h", "never"],
    "HATCH_S3_BUCKET": ["x", "Upper", "under_score", "a/b", "-ab", "a" * 64],
    "HATCH_S3_ENDPOINT": ["s3.example.com", "ftp://s3.example.com", "https://", "http://h/path", "http://me:pw@h"],
    "HATCH_S3_PATH_STYLE": ["yes", "path"],
    "HATCH_S3_PREFIX": ["..", "a//b", "a b", "a/../b", "x" * 64, "~x", "a/" * 9],
    "HATCH_SNAPSHOT_KEEP": ["0", "1001", "x", "1.5"],
    "HATCH_LAZY_RESTORE": ["always"],
    "HATCH_SNAPSHOT_GRACE": ["0s", "6"],
    "HATCH_VMM": ["xen", "QEMU"],
    "HATCH_ACCEL": ["hvf"],
    "HATCH_JAIL": ["maybe", "true"],
    "HATCH_JAIL_UIDS": ["1000-2000", "70000", "70001-70000", "70000-4294967295", "a-b", "-70000", "70000-"],
    "HATCH_HUGE_PAGES": ["1G", "on"],
    "HATCH_DISK_RATE": ["fast", "-1", "10MB", "1e6"],
    "HATCH_NET_RATE": ["10m"],
    "HATCH_NETWORK": ["host"],
    "HATCH_BRIDGE_NAME": ["Br0", "a/b", "x" * 14, "br 0"],
    "HATCH_BRIDGE_CIDR": ["172.16.0.0/24", "172.16.0.255/24", "172.16.0.1", "::1/64", "172.16.0.1/31", "10.0.0.1/7"],
    "HATCH_BRIDGE_ALLOW": ["here", "192.0.2.0/24:0", "192.0.2.1/24"],
    "HATCH_NETNS": ["a/b", "..", "x" * 65],
    "HATCH_SSH_ALLOWED_CIDR": [",", "localhost", "127.0.0.1/33"],
    "HATCH_SSH_ADDR": ["2222"],
    "HATCH_DEFAULT_VCPU": ["0", "33", "two"],
    "HATCH_DEFAULT_MEM_MIB": ["31", "1048577", "512M"],
    "HATCH_SSH_PORT_MIN": ["0", "65536"],
    "HATCH_SSH_PORT_MAX": ["0", "65536"],
    "HATCH_IDLE_CHECK_INTERVAL": ["0", "5"],
    "HATCH_IDLE_TIMEOUT": ["0s", "30", "-1m", "1d", "never"],
    "HATCH_PROXY_WAKE_TIMEOUT": ["0s"],
    "HATCH_WAKE_TIMEOUT": ["soon"],
    "HATCH_STREAM_IDLE_TIMEOUT": ["15 m"],
    "HATCH_LOG_LEVEL": ["verbose"],
    "HATCH_LOG_FORMAT": ["xml"],
}


def variables() -> dict[str, str]:
    """variable -> field, in its first spelling."""
    named = {}
    for field, info in Config.model_fields.items():
        alias = info.validation_alias
        first = alias.choices[0] if isinstance(alias, AliasChoices) else alias
        named[str(first or f"HATCH_{field.upper()}")] = field
    return named


def setenv(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def documented() -> dict[str, tuple[list[str], list[str]]]:
    """The page's rows: first cell -> (variables, words of the default in code type)."""
    rows = re.findall(r"^\| (`[^|]+) \| ([^|]*)\|", PAGE.read_text(), re.MULTILINE)
    return {cell: (re.findall("`([A-Z0-9_]+)`", cell), re.findall("`([^`]+)`", default)) for cell, default in rows}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of whoever runs the tests."""
    for name in [name for name in os.environ if name.upper().startswith("HATCH_") or name == "DATABASE_URL"]:
        monkeypatch.delenv(name)


def test_every_variable_has_a_row_on_its_page_and_the_other_way_round() -> None:
    on_page = [name for names, _ in documented().values() for name in names]
    assert sorted(on_page) == sorted(variables()) == sorted(GOOD)


@pytest.mark.parametrize(
    ("variable", "default"),
    [
        pair
        for names, words in documented().values()
        if len(names) == len(words)
        for pair in zip(names, words, strict=True)
    ],
)
def test_a_default_written_out_changes_nothing(variable: str, default: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setenv(monkeypatch, WITH.get(variable, {}))
    usual = load()
    monkeypatch.setenv(variable, default)
    given = load()
    if variable != "HATCH_QEMU_BIN":  # the driver knows its program's name
        assert given == usual


@pytest.mark.parametrize("variable", GOOD)
def test_a_good_value_is_read_from_the_environment_and_from_a_file(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, value = GOOD[variable]
    field = variables()[variable]
    assert getattr(load(), field) != value
    setenv(monkeypatch, WITH.get(variable, {}))
    file = tmp_path / "hatch.env"
    file.write_text(f'# a remark\n{variable}="{text}"\n')
    assert getattr(load(file), field) == value
    monkeypatch.setenv(variable, text)
    assert getattr(load(), field) == value


@pytest.mark.parametrize(("variable", "text"), [(name, text) for name, texts in BAD.items() for text in texts])
def test_a_bad_value_is_refused_by_name(variable: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(Invalid, match=rf"^{variable}: .") as refusal:
        load()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", BAD["HATCH_HTTP_ADDR"])
def test_the_refusal_of_an_address_shows_how_to_write_one(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATCH_HTTP_ADDR", text)
    with pytest.raises(Invalid, match=r"is not an address; write it like 127\.0\.0\.1:8080$"):
        load()


@pytest.mark.parametrize(("variable", "text"), [(name, text) for name, texts in BAD.items() for text in texts[:1]])
def test_a_bad_value_in_a_file_is_refused_by_name(variable: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "hatch.env"
    file.write_text(f"{variable}={text}\n")
    with pytest.raises(Invalid, match=rf"^{variable}: ."):
        load(file)


@pytest.mark.parametrize("mine", ["HATCH_BASE_DOMAIN", "HATCH_PROXY_BASE_DOMAIN"])
@pytest.mark.parametrize("theirs", ["HATCH_BASE_DOMAIN", "HATCH_PROXY_BASE_DOMAIN"])
def test_the_environment_wins_over_the_file(
    mine: str, theirs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "hatch.env"
    file.write_text(f"{theirs}=file.example\nHATCH_VMM=qemu\n")
    monkeypatch.setenv(mine, "environment.example")
    config = load(file)
    assert (config.base_domain, config.vmm) == (("environment.example",), "qemu")


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = load()
    for variable in GOOD:
        monkeypatch.setenv(variable, "")
    assert load() == usual


def test_a_file_that_is_not_there_or_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"--env-file: .* is not a file"):
        load(tmp_path)
    (tmp_path / "hatch.env").write_bytes(b"HATCH_VMM=\xff\n")
    with pytest.raises(Invalid, match=r"--env-file: .* cannot be read as text"):
        load(tmp_path / "hatch.env")


def test_ssh_ports_the_wrong_way_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATCH_SSH_PORT_MIN", "20000")
    monkeypatch.setenv("HATCH_SSH_PORT_MAX", "20000")
    load()
    monkeypatch.setenv("HATCH_SSH_PORT_MIN", "20001")
    with pytest.raises(Invalid, match="HATCH_SSH_PORT_MIN is above HATCH_SSH_PORT_MAX"):
        load()


CONTRADICTIONS: Final = [
    ({"HATCH_S3_ENDPOINT": "http://h"}, "HATCH_S3_BUCKET: set it, or unset HATCH_S3_ENDPOINT, which needs it"),
    ({"HATCH_S3_BUCKET": "abc", "HATCH_S3_ACCESS_KEY": "k"}, "HATCH_S3_ACCESS_KEY and HATCH_S3_SECRET_KEY: set both"),
    ({"HATCH_S3_BUCKET": "abc", "HATCH_S3_SECRET_KEY": "s"}, "HATCH_S3_ACCESS_KEY and HATCH_S3_SECRET_KEY: set both"),
    ({"HATCH_S3_BUCKET": "abc", "HATCH_SNAPSHOT_STORE": "/s"}, "HATCH_SNAPSHOT_STORE: HATCH_S3_BUCKET is set as well"),
    ({"HATCH_S3_BUCKET": "abc", "HATCH_SNAPSHOT_STORE": "directory"}, "HATCH_SNAPSHOT_STORE: HATCH_S3_BUCKET is set"),
]


@pytest.mark.parametrize(("values", "sentence"), CONTRADICTIONS, ids=[" ".join(values) for values, _ in CONTRADICTIONS])
def test_a_store_in_two_places_or_in_half_a_place_is_refused(
    values: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    setenv(monkeypatch, values)
    with pytest.raises(Invalid, match=f"^{sentence}"):
        load()


def test_snapshots_are_switched_off_whatever_else_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    setenv(monkeypatch, {"HATCH_S3_BUCKET": "abc", "HATCH_SNAPSHOT_STORE": "none"})
    assert load().snapshot_store == "none"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"HATCH_TLS_CERT": "a,b", "HATCH_TLS_KEY": "a"}, "HATCH_TLS_CERT and HATCH_TLS_KEY: name as many keys"),
        ({"HATCH_TLS_KEY": "a"}, "HATCH_TLS_CERT and HATCH_TLS_KEY: name as many keys"),
        ({"HATCH_TLS_ADDR": ":443"}, "HATCH_TLS_ADDR: it needs HATCH_TLS_CERT and HATCH_TLS_KEY"),
    ],
    ids=["one key too few", "no certificate", "a port for nothing"],
)
def test_half_of_a_tls_port_is_refused(values: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setenv(monkeypatch, values)
    with pytest.raises(Invalid, match=f"^{sentence}"):
        load()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"HATCH_VMM": "firecracker"}, "HATCH_VMM: Firecracker needs HATCH_NETWORK=bridge, which needs root"),
        ({"HATCH_VMM": "firecracker", "HATCH_NETWORK": "user"}, "HATCH_VMM: Firecracker needs HATCH_NETWORK=bridge"),
        (FIRECRACKER | {"HATCH_ACCEL": "tcg"}, "HATCH_ACCEL: Firecracker needs KVM"),
        ({"HATCH_DISK_RATE": "1MiB"}, "HATCH_DISK_RATE: only Firecracker can do it; it needs HATCH_VMM=firecracker"),
        ({"HATCH_HUGE_PAGES": "2M", "HATCH_NETWORK": "bridge"}, "HATCH_HUGE_PAGES: only Firecracker"),
        ({"HATCH_VMM": "qemu", "HATCH_JAIL": "off"}, "HATCH_JAIL: it is Firecracker's, and HATCH_VMM=qemu is set"),
        ({"HATCH_VMM": "qemu", "HATCH_FIRECRACKER_BINS": "/f"}, "HATCH_FIRECRACKER_BINS: it is Firecracker's"),
    ],
)
def test_what_a_vmm_cannot_do_is_refused(
    values: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    setenv(monkeypatch, values)
    with pytest.raises(Invalid, match=f"^{sentence}"):
        load()


@pytest.mark.parametrize("cache", ["", "/xdg"])
def test_images_are_cached_where_the_desktop_says(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    assert load().cache_dir == Path(cache or "/home/me/.cache") / "hatchvm"


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HATCH_AUTH_VERIFY_URL", "https://user:swordfish@keys.example")
    setenv(monkeypatch, WITH["HATCH_S3_SECRET_KEY"] | {"HATCH_S3_SECRET_KEY": "swordfish"})
    assert "swordfish" not in repr(load())
