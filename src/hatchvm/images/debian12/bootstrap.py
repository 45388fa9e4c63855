"""Installing Debian 12 into a tar archive, with mmdebstrap: as root, or as anybody in a user namespace."""

from __future__ import annotations

import os
import re
import subprocess
from collections import deque
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Final

from hatchvm.base.errors import Unavailable, Unsupported
from hatchvm.images.tools import path_of, run

SUITE: Final = "bookworm"

_PACKAGES: Final = (
    *("systemd-sysv", "udev", "dbus", "iproute2", "netbase", "udhcpc", "busybox-static", "procps", "less", "sudo"),
    *("openssh-server", "rsync", "curl", "ca-certificates", "cloud-init", "linux-image-cloud-amd64"),
    *("qemu-guest-agent", "util-linux-extra"),  # the agent sets the clock with hwclock, which is in the latter
)
_DPKG: Final = (
    *("path-exclude=/usr/share/man/*", "path-exclude=/usr/share/locale/*", "path-exclude=/usr/share/doc/*"),
    "path-include=/usr/share/doc/*/copyright",
)
#: Proxies and the like, as this host's apt uses them. The script at the end removes the file.
_APT_OF_HOST: Final = 'apt-config dump Acquire >"$1/etc/apt/apt.conf.d/00host"'
#: The order of Python's sets, in bytecode, is the same each time; the kernel package makes no initrd, as ours is used.
_ENVIRONMENT: Final = {
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    "PYTHONHASHSEED": "0",
    "INITRD": "No",
}
_SOURCE: Final = re.compile(rf"^\S+ {SUITE}(?:-updates|-security)? main Debian$", re.MULTILINE)
_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_STEP: Final = re.compile(r"^I: ((?:running apt-get|downloading|extracting|installing) [^.]*)")
_ADVICE: Final = (
    "; as another user than root it needs the package uidmap and an entry for the user in /etc/subuid and /etc/subgid"
)


def bootstrap(archive: Path, scratch: Path, progress: Callable[[str], None]) -> None:
    """Write the system's files as the new tar archive `archive`. Takes a minute or two.

    `scratch` is an existing folder for temporary files. Raises Unsupported if mmdebstrap is not installed, Unavailable
    with what it said last if it fails.
    """
    sources = scratch / "sources.list"
    sources.touch(mode=0o600)  # an address may hold a password
    sources.write_text(apt_sources(run("apt-get", "indextargets", "--format", _FORMAT, "Created-By: Packages")))
    mirrors = ["-"] if sources.stat().st_size else []  # without any, mmdebstrap knows Debian's own
    argv = [_mmdebstrap(), "--mode=unshare", "--variant=minbase", "--format=tar", f"--include={','.join(_PACKAGES)}"]
    argv += [f"--dpkgopt={option}" for option in _DPKG]
    argv += [f"--setup-hook={_APT_OF_HOST}", f"--customize-hook={_script()}", SUITE, "-", *mirrors]
    env = {**os.environ, **_ENVIRONMENT}
    if os.geteuid() == 0:
        env["TMPDIR"] = str(scratch)  # which a user namespace's root could not enter
    last: deque[str] = deque(maxlen=30)
    with (
        archive.open("xb") as output,
        sources.open() as given,
        subprocess.Popen(argv, stdin=given, stdout=output, stderr=subprocess.PIPE, text=True, env=env) as process,
    ):
        assert process.stderr is not None
        for line in process.stderr:
            last.append(line)
            if step := _STEP.match(line):
                progress(step[1])
    if process.returncode != 0:
        advice = "" if os.geteuid() == 0 else _ADVICE
        raise Unavailable(f"mmdebstrap could not install Debian {SUITE}{advice}", detail="".join(last)[-2000:])


_FORMAT: Final = "$(REPO_URI) $(RELEASE) $(COMPONENT) $(ORIGIN)"


def apt_sources(targets: str) -> str:
    """The `sources.list` for Debian 12, from the sources of this host as apt lists them in lines of `_FORMAT`.

    Empty if this host has none: it may run another release.
    """
    lines = dict.fromkeys(match[0].removesuffix(" Debian") for match in _SOURCE.finditer(targets))
    trusted = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
    return "".join(f"deb {trusted}{line}\n" for line in lines)


def _mmdebstrap() -> str:
    try:
        return path_of("mmdebstrap")
    except Unsupported as error:
        raise Unsupported("building the image debian needs mmdebstrap; install the package mmdebstrap") from error


def _script() -> str:
    return resources.files("hatchvm.images.debian12").joinpath("customize.sh").read_text()
