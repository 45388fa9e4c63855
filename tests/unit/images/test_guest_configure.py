"""The guest's cloud-init reader, run on this host over a folder that stands for the guest's root."""

from __future__ import annotations

import base64
import gzip
import stat
from pathlib import Path
from typing import Protocol

import pytest


class Guest(Protocol):
    root: Path

    def configure(self, user_data: str, *, meta_data: str = ...) -> str: ...
    def read(self, path: str) -> str: ...
    def run_script(self) -> str: ...


def config(text: str) -> str:
    return f"#cloud-config\n{text}"


def test_nothing_but_a_name(guest: Guest) -> None:
    assert guest.configure("") == ""
    assert guest.read("etc/hostname") == "web\n"
    assert guest.read("etc/hosts") == "127.0.0.1 localhost\n127.0.1.1 web\n"
    assert not (guest.root / "run/cloud-init/script").exists()


@pytest.mark.parametrize("quote", ["", '"', "'"])
def test_meta_data_may_be_quoted(guest: Guest, quote: str) -> None:
    guest.configure("", meta_data=f"other: x\ninstance-id: {quote}one:2{quote}\nlocal-hostname: {quote}a.b.c{quote}\n")
    assert guest.read("etc/hostname") == "a\n"
    assert guest.read("var/lib/cloud/instance-id") == "one:2\n"


def test_a_script_is_kept_byte_for_byte(guest: Guest) -> None:
    script = "#!/bin/sh\nprintf 'a\\tb  \\\\n%s\\n' \"$HOME\" > out\n\n# end without newline"
    assert guest.configure(script) == ""
    assert guest.read("run/cloud-init/script") == script


def test_it_happens_once_an_instance(guest: Guest) -> None:
    guest.configure(config("write_files: [{path: /a, content: one}]"))
    (guest.root / "a").write_text("changed")
    (guest.root / "run/cloud-init/script").unlink()
    assert guest.configure(config("write_files: [{path: /a, content: two}]")) == ""
    assert guest.read("a") == "changed"
    assert not (guest.root / "run/cloud-init/script").exists()
    guest.configure(config("write_files: [{path: /a, content: two}]"), meta_data="instance-id: another\n")
    assert guest.read("a") == "two"


def test_host_name_and_keys(guest: Guest) -> None:
    said = guest.configure(
        config(
            """\
hostname: other
ssh_authorized_keys:
  - ssh-ed25519 AAAA one
users:
  - default
  - name: root
    ssh_authorized_keys: [ssh-ed25519 BBBB two]
  - ssh_authorized_keys: [ssh-ed25519 CCCC three]
    sudo: ALL
    name: bob
"""
        )
    )
    assert guest.read("etc/hostname") == "other\n"
    assert guest.read("root/.ssh/authorized_keys") == "ssh-ed25519 AAAA one\nssh-ed25519 BBBB two\n"
    assert stat.S_IMODE((guest.root / "root/.ssh/authorized_keys").stat().st_mode) == 0o600
    assert said == 'cloud-init: ignored: the user "bob" and its keys; this image has only root\n'


def test_files(guest: Guest) -> None:
    packed = base64.b64encode(gzip.compress(b"packed\n" * 100)).decode()
    said = guest.configure(
        config(
            f"""\
write_files:
  - path: /etc/app/config.ini
    permissions: '0640'
    content: |
      [main]
      path = C:\\new\\table
        indented = 'yes' "no" $HOME `id`
  - content: aGVsbG8=
    encoding: b64
    path: /b64
  - {{path: /packed, encoding: gz+b64, content: {packed}}}
  - path: /log
    content: "one\\n"
  - path: /log
    content: "\\ttwo %s %d\\n"
    append: true
  - path: "/with space"
  - path: relative
    content: x
  - path: /odd
    encoding: rot13
    content: x
    permissions: rwx?
    source: {{uri: x}}
"""
        )
    )
    assert guest.read("etc/app/config.ini") == ("[main]\npath = C:\\new\\table\n  indented = 'yes' \"no\" $HOME `id`\n")
    assert stat.S_IMODE((guest.root / "etc/app/config.ini").stat().st_mode) == 0o640
    assert stat.S_IMODE((guest.root / "etc/app").stat().st_mode) == 0o755
    assert guest.read("b64") == "hello"
    assert guest.read("packed") == "packed\n" * 100
    assert guest.read("log") == "one\n\ttwo %s %d\n"
    assert guest.read("with space") == ""
    assert stat.S_IMODE((guest.root / "b64").stat().st_mode) == 0o644
    assert said.splitlines() == [
        "cloud-init: ignored: write_files.6 has no absolute path",
        "cloud-init: ignored: write_files.7.source.uri",
        'cloud-init: /odd: the content does not fit the encoding "rot13"',
        'cloud-init: /odd: the permissions "rwx?" are not understood',
    ]


def test_an_existing_file_is_replaced_not_followed(guest: Guest) -> None:
    (guest.root / "target").write_text("keep")
    (guest.root / "link").symlink_to("target")
    guest.configure(config("write_files: [{path: /link, content: new}]"))
    assert (guest.read("link"), guest.read("target")) == ("new", "keep")


def test_commands_run_in_order_in_one_shell(guest: Guest) -> None:
    guest.configure(
        config(
            """\
runcmd:
  - x=5; echo "a  $x"
  - [echo, $x, it's, 'two  words', "", "*"]
  - |
    for n in 1 2; do
      echo "n=$n\\t"
    done
  - false
  - [sh, -c, 'echo "last" | cat']
"""
        )
    )
    assert guest.run_script().replace("\\t", "\t").splitlines() == [
        "a  5",
        "$x it's two  words  *",
        "n=1\t",
        "n=2\t",
        "last",
    ]


@pytest.mark.parametrize(
    ("user_data", "said"),
    [
        ("#include\nhttp://x\n", "user-data is ignored: it begins neither with #! nor with #cloud-config"),
        ("hello", "user-data is ignored: it begins neither with #! nor with #cloud-config"),
        (config("a: &x b\n"), "user-data is ignored as a whole: line 2: anchors, aliases and tags are not understood"),
        (config("packages: [a, b]\npackage_update: true\n"), "ignored: packages\ncloud-init: ignored: package_update"),
        (
            config("runcmd:\n  - echo a: b\n"),
            'ignored: runcmd.0.echo a is neither a text nor a list of texts; quote what contains ": "',
        ),
    ],
)
def test_what_is_not_understood_is_said(guest: Guest, user_data: str, said: str) -> None:
    assert guest.configure(user_data) == f"cloud-init: {said}\n"
    assert guest.read("etc/hostname") == "web\n"
    assert guest.read("var/lib/cloud/instance-id") == "one\n"
