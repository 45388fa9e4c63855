"""`hatchvm image import` and `image pull`: what reaches the importer, what is registered, what is left behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hatchvm.base.errors import Exhausted
from hatchvm.domain.image import Boot
from hatchvm.images.importing import importer, pulling
from hatchvm.testing.command import Cli
from hatchvm.testing.images.containers import oci_layout
from hatchvm.testing.live import Live

pytest_plugins = ["hatchvm.testing.cli_fixtures"]

GIB = 2**30


class Importer:
    """Remembers what it was asked; the files it makes are empty."""

    asked: tuple[Path, int, str | None]

    def __init__(self, work: Path, tiny: object, progress: object, max_bytes: int) -> None:
        assert list(work.iterdir()) == []
        self._work = work
        self._max_bytes = max_bytes

    def run(self, path: Path, boot_args: str | None) -> Boot:
        Importer.asked = path, self._max_bytes, boot_args
        if path.name == "too-large":
            raise Exhausted("no room")
        names = {name: self._work / name for name in ("kernel", "initrd", "rootfs")}
        for file in names.values():
            file.touch()
        return Boot(**names, rootfs_format="qcow2", boot_args=boot_args or "usual")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clean_environment: None) -> Iterator[Path]:
    monkeypatch.setattr(importer, "Importer", Importer)
    monkeypatch.setenv("HATCH_CACHE_DIR", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    assert list((tmp_path / "cache").glob("*")) == [], "something is left"


def test_import_registers_what_was_made(cli: Cli, live: Live, cache: Path) -> None:
    outcome = cli("--json", "image", "import", "some.tar", "--name", "imported", "--max-size", "2TiB")
    assert outcome.code == 0, outcome.err
    assert Importer.asked == (Path("some.tar"), 2048 * GIB, None)
    image = json.loads(outcome.out)
    assert image["name"] == "imported"
    stored = live.house.image_rows.find_named("imported").boot
    assert stored.boot_args == "usual"
    assert stored.rootfs
    assert stored.rootfs.is_relative_to(cache)
    assert "registering the image" in outcome.err


def test_boot_args_are_passed_on(cli: Cli) -> None:
    assert cli("image", "import", "some.tar", "--boot-args", "quiet").code == 0
    assert Importer.asked == (Path("some.tar"), 32 * GIB, "quiet")


@pytest.mark.parametrize("size", ["5", "GiB", "5GB", "-1GiB", "1.5GiB", ""])
def test_sizes_that_are_none(size: str, cli: Cli, cache: Path) -> None:
    outcome = cli("image", "import", "some.tar", f"--max-size={size}")
    assert (outcome.code, "such as 64GiB" in outcome.err) == (2, True)


def test_a_failed_import_leaves_nothing(cli: Cli) -> None:
    outcome = cli("image", "import", "too-large")
    assert outcome.code == 7
    assert outcome.err.startswith("hatchvm: no room")


def test_pull_imports_what_was_fetched(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled = []

    def pull(reference: str, target: Path, *, tls_verify: bool) -> None:
        pulled.append((reference, tls_verify))
        oci_layout(target, [])

    monkeypatch.setattr(pulling, "pull", pull)
    assert cli("image", "pull", "docker.io/nginx:1").code == 0
    assert cli("image", "pull", "localhost:5000/a", "--no-tls-verify").code == 0
    assert pulled == [("docker.io/nginx:1", True), ("localhost:5000/a", False)]
    assert Importer.asked[0].name == "layout"
