"""Which Firecracker is there, by what it says; a script plays it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hatchvm.base.errors import Unsupported
from hatchvm.vmm.firecracker.version import OLDEST, Installed, Version, installed, parse

LOG: Final = "2026-11-22T22:13:36.201108616 [anonymous-instance:main] Firecracker exiting successfully. exit_code=0\n"
NUMBER: Final = st.integers(0, 999)
VERSIONS: Final = st.builds(Version, NUMBER, NUMBER, NUMBER, st.sampled_from(["", "-dev", "-rc1"]))


def firecracker(folder: Path, version: str, snapshot_version: str = "v10.0.0") -> str:
    program = folder / "firecracker"
    program.write_text(
        f"#!/bin/sh\ncase $1 in --version) printf '%s\\n\\n' '{version}';; *) echo '{snapshot_version}';; esac\n"
        f"echo '{LOG.strip()}'\n"
    )
    program.chmod(0o755)
    return str(program)


@given(VERSIONS, st.sampled_from(["Firecracker", "Jailer", None]))
def test_what_a_program_says_is_read_whatever_it_logs(version: Version, program: str | None) -> None:
    said = f"{program + ' ' if program else ''}v{version}\n\n{LOG}"
    assert parse(said, program) == version
    assert parse(LOG + said, program) == version
    assert parse(said, "Another") is None


@pytest.mark.parametrize("text", ["", "Firecracker", "Firecracker v1.16", "QEMU emulator version 7.2.9", LOG])
def test_what_is_no_version_is_none(text: str) -> None:
    assert parse(text, "Firecracker") is None


def test_an_installed_one_tells_its_version_and_its_snapshots(tmp_path: Path) -> None:
    path = firecracker(tmp_path, "Firecracker v1.17.0-dev", "v11.0.0")
    link = tmp_path / "fc"
    link.symlink_to(path)
    found = installed(str(link))
    assert found == Installed(Path(path), Version(1, 17, 0, "-dev"), Version(11, 0, 0))
    assert str(found.version) == "1.17.0-dev"


def test_the_oldest_supported_is_supported(tmp_path: Path) -> None:
    assert installed(firecracker(tmp_path, f"Firecracker v{OLDEST}")).version == OLDEST


@pytest.mark.parametrize(
    ("version", "why"),
    [
        ("Firecracker v1.16.0", "Firecracker 1.16.0 is too old: 1.16.1 or newer"),
        ("Firecracker v0.25.2", "too old"),
        ("Firecracker v2.0.0", "newer than what Hatch knows"),
        ("Jailer v1.16.1", "is no Firecracker"),
    ],
)
def test_others_are_refused_with_what_to_do(tmp_path: Path, version: str, why: str) -> None:
    with pytest.raises(Unsupported, match=why):
        installed(firecracker(tmp_path, version))


def test_one_that_is_missing_or_fails_or_says_nothing_of_snapshots(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="is not installed"):
        installed(str(tmp_path / "firecracker"))
    with pytest.raises(Unsupported, match="which snapshots"):
        installed(firecracker(tmp_path, "Firecracker v1.16.1", "-"))
    failing = tmp_path / "failing"
    failing.write_text("#!/bin/sh\nexit 1\n")
    failing.chmod(0o755)
    with pytest.raises(Unsupported, match="does not run"):
        installed(str(failing))


def test_a_state_is_loaded_by_the_same_major_format_and_no_older_minor() -> None:
    one = Installed(Path("/f"), OLDEST, Version(10, 2, 0))
    assert one.loads(Version(10, 2, 7))
    assert one.loads(Version(10, 0, 0))
    assert not one.loads(Version(10, 3, 0))
    assert not one.loads(Version(9, 0, 0))
    assert not one.loads(Version(11, 0, 0))
