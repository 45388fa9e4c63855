"""The image `debian`: where its packages come from, how a build is told about, what is made the same on every host."""

from __future__ import annotations

import io
import os
import tarfile
from importlib import resources
from pathlib import Path
from socket import VMADDR_CID_ANY

import pytest

from hatchvm.base.errors import Unavailable, Unsupported
from hatchvm.images.debian12 import bootstrap, recipe
from hatchvm.vmm.guest_agent import VSOCK_PORT

HOST = "https://mirror.test"

LISTED = f"""{HOST}/debian/ bookworm main Debian
{HOST}/debian/ bookworm contrib Debian
{HOST}/debian/ bookworm-updates main Debian
{HOST}/debian-security/ bookworm-security main Debian
{HOST}/debian/ bookworm main Debian
{HOST}/debian/ trixie main Debian
{HOST}/debian/ bookworm-backports main Debian
{HOST}/others/ bookworm main Someone
{HOST}/unknown/ bookworm main $(ORIGIN)
"""

#: Stands for mmdebstrap: says what it was given, writes an archive of the arguments.
MMDEBSTRAP = """#!/bin/sh
echo "I: running apt-get update..." >&2
echo "I: running --setup-hook in shell: sh -c '...'" >&2
echo "I: extracting archives..." >&2
for word; do echo "$word"; done
echo "--- $TMPDIR"
cat
exit ${FAIL:-0}
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of stand-ins that PATH begins with."""
    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "apt-get").write_text(f"#!/bin/sh\ncat <<'END'\n{LISTED}END\n")
    (folder / "mmdebstrap").write_text(MMDEBSTRAP)
    for program in folder.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def test_only_debian_12_of_debian_itself_is_taken_from_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_KEYRING", Path("/nowhere"))
    assert bootstrap.apt_sources(LISTED).splitlines() == [
        f"deb {HOST}/debian/ bookworm main",
        f"deb {HOST}/debian/ bookworm-updates main",
        f"deb {HOST}/debian-security/ bookworm-security main",
    ]
    assert bootstrap.apt_sources("") == ""


def test_the_keyring_is_named_where_the_host_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bootstrap, "_KEYRING", tmp_path)
    assert bootstrap.apt_sources(LISTED).startswith(f"deb [signed-by={tmp_path}] {HOST}/debian/ bookworm main\n")


def test_mmdebstrap_gets_the_sources_and_its_steps_are_told(programs: Path, scratch: Path) -> None:
    steps: list[str] = []
    bootstrap.bootstrap(scratch / "tar", scratch, steps.append)
    assert steps == ["running apt-get update", "extracting archives"]
    said = (scratch / "tar").read_text()
    assert "\nbookworm\n-\n-\n--- " in said
    assert said.endswith(bootstrap.apt_sources(LISTED))
    assert "--mode=unshare\n" in said
    assert HOST not in said.partition("\n--- ")[0], "an address may hold a password, and others can read arguments"


def test_a_host_of_another_release_leaves_the_mirrors_to_mmdebstrap(programs: Path, scratch: Path) -> None:
    (programs / "apt-get").write_text("#!/bin/sh\n")
    bootstrap.bootstrap(scratch / "tar", scratch, lambda step: None)
    assert "\nbookworm\n-\n--- " in (scratch / "tar").read_text()


@pytest.mark.parametrize(("uid", "advice"), [(0, False), (1000, True)])
def test_a_failure_tells_what_was_said_last(
    programs: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, uid: int, advice: bool
) -> None:
    monkeypatch.setenv("FAIL", "25")
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    with pytest.raises(Unavailable, match="mmdebstrap could not install Debian bookworm") as raised:
        bootstrap.bootstrap(scratch / "tar", scratch, lambda step: None)
    assert "extracting archives" in (raised.value.detail or "")
    assert ("uidmap" in raised.value.message) is advice


def test_without_mmdebstrap_the_package_is_named(
    programs: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "path_of", _no_program)
    with pytest.raises(Unsupported, match="install the package mmdebstrap"):
        bootstrap.bootstrap(scratch / "tar", scratch, lambda step: None)


def _no_program(name: str) -> str:
    raise Unsupported(f"{name} is not installed")


def _archive(tar: Path, entries: dict[str, tuple[int, bytes | None]]) -> None:
    """Name -> (time, content; None for a folder)."""
    with tarfile.open(tar, "w") as archive:
        for name, (mtime, data) in entries.items():
            member = tarfile.TarInfo(name)
            member.mtime = mtime
            if data is None:
                member.type = tarfile.DIRTYPE
            else:
                member.size = len(data)
            archive.addfile(member, io.BytesIO(data or b""))


def test_what_the_build_made_carries_no_trace_of_its_day(tmp_path: Path, scratch: Path) -> None:
    shadow = b"root:*:%d:0:99999:7:::\nuser:!:%d::::::\n"
    began, newest = 1_800_000_000, 1_700_000_000
    for name, today in (("one", 20_900), ("two", 20_901)):
        made = today * 86400
        _archive(
            tmp_path / name,
            {
                "etc/": (made, None),
                "etc/shadow": (made, shadow % (today, today)),
                "etc/shadow-": (made, shadow % (today, today)),
                "etc/packaged": (newest, b""),
                "etc/older": (5, b""),
            },
        )
    times, contents = [], []
    for name in ("one", "two"):
        folder = scratch / name
        folder.mkdir()
        rootfs = recipe._read(tmp_path / name, folder)
        recipe._forget_today(rootfs, began)
        etc = rootfs.root.children["etc"]
        times.append({"etc": etc.mtime} | {entry: node.mtime for entry, node in etc.children.items()})
        contents.append(recipe._content(etc.children["shadow"]).read_bytes())
    assert times[0] == times[1] == {"etc": newest, "shadow": newest, "shadow-": newest, "packaged": newest, "older": 5}
    assert contents[0] == contents[1] == shadow % (newest // 86400, newest // 86400)


def test_the_agent_listens_on_vsock_where_the_host_asks() -> None:
    script = resources.files("hatchvm.images.debian12").joinpath("customize.sh").read_text()
    assert f"--method=vsock-listen --path={VMADDR_CID_ANY}:{VSOCK_PORT}\n" in script
