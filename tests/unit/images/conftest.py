"""Running the guest's scripts on this host: with its own shell and awk, and with busybox where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pytest

GUEST = Path(str(resources.files("hatchvm.images"))) / "guest"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hatchvm"


@dataclass(frozen=True)
class Host:
    """How to start the guest's interpreters here."""

    shell: tuple[str, ...]
    awk: tuple[str, ...]


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> str | None:
    """The busybox of a `tiny` that was built here, else this host's."""
    disks = sorted(CACHE.glob("tiny-*/rootfs.img"))
    if not disks:
        return shutil.which("busybox")
    program = tmp_path_factory.mktemp("busybox") / "busybox"
    dump = ["/sbin/debugfs", "-R", f"dump /usr/bin/busybox {program}", str(disks[0])]
    subprocess.run(dump, check=True, capture_output=True)
    program.chmod(0o755)
    return str(program)


@pytest.fixture(params=["host", "busybox"])
def host(request: pytest.FixtureRequest, busybox: str | None) -> Host:
    if request.param == "host":
        return Host(shell=("sh",), awk=("awk",))
    if busybox is None:
        pytest.skip("no busybox: build the image tiny, or install busybox")
    return Host(shell=(busybox, "sh"), awk=(busybox, "awk"))


@pytest.fixture
def guest_awk(host: Host) -> Callable[[str, str], subprocess.CompletedProcess[str]]:
    """Runs one of the guest's awk scripts over a text."""

    def run(script: str, text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*host.awk, "-f", str(GUEST / script)],
            input=text,
            capture_output=True,
            encoding="utf-8",
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )

    return run


class Guest:
    """A folder that stands for the guest's root, and its cloud-init reader."""

    def __init__(self, root: Path, host: Host) -> None:
        self.root = root / "root"
        self._host = host
        self._seed = root / "seed"
        self._console = root / "console"
        for folder in ("etc", "root/.ssh", "var/lib/cloud"):
            (self.root / folder).mkdir(parents=True)
        self._seed.mkdir()

    def configure(self, user_data: str, *, meta_data: str = "instance-id: one\nlocal-hostname: web\n") -> str:
        """Boot once with this seed; what was said on the console."""
        (self._seed / "meta-data").write_text(meta_data)
        (self._seed / "user-data").write_text(user_data)
        self._console.write_text("")
        environment = {"ROOT": str(self.root), "SEED": str(self._seed), "CONSOLE": str(self._console), "LC_ALL": "C"}
        done = subprocess.run(
            [*self._host.shell, str(GUEST / "configure")],
            env={"PATH": os.environ["PATH"], **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        return self._console.read_text()

    def read(self, path: str) -> str:
        return (self.root / path).read_text()

    def run_script(self) -> str:
        """The output of the script that was left for the second half, run in an empty folder."""
        folder = self.root / "work"
        folder.mkdir(exist_ok=True)
        script = str(self.root / "run/cloud-init/script")
        return subprocess.run(
            [*self._host.shell, script], cwd=folder, capture_output=True, text=True, check=False
        ).stdout


@pytest.fixture
def guest(tmp_path: Path, host: Host) -> Guest:
    return Guest(tmp_path, host)
