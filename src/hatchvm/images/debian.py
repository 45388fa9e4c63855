"""Debian packages as a source of files: fetched with apt, unpacked over one another, never installed; no root."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hatchvm.base.errors import Unavailable
from hatchvm.images.tools import run

_DEPENDS: Final = ("depends", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces")
_REAL: Final = re.compile(r"^[a-z0-9][a-z0-9.+-]*$", re.MULTILINE)
_FIRST: Final = re.compile(r"^ +Depends: ([a-z0-9][a-z0-9.+-]*)$", re.MULTILINE)


def unpack(folder: Path, programs: Sequence[str], *, meta_package: str | None = None) -> Path:
    """Download `programs` with all they depend on, and the package that `meta_package` stands for; their common tree.

    Raises Unavailable if apt does not know or cannot fetch one of them, Unsupported on a host without apt.
    """
    try:
        return _unpack(folder, programs, meta_package)
    except Unavailable as error:
        if os.geteuid() != 0:
            advice = "apt could not fetch the image's Debian packages; run `apt-get update` as root, then try again"
            raise Unavailable(advice, detail=error.detail) from error
    run("apt-get", "update", "-qq")
    return _unpack(folder, programs, meta_package)


def _unpack(folder: Path, programs: Sequence[str], meta_package: str | None) -> Path:
    packages = _REAL.findall(run("apt-cache", *_DEPENDS, "--no-enhances", "--recurse", *programs))
    if meta_package:
        packages.append(_stands_for(meta_package))
    downloads = folder / "packages"
    shutil.rmtree(downloads, ignore_errors=True)
    downloads.mkdir()
    # As root apt would fetch as the user `_apt`, who may not write here.
    run("apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", *packages, cwd=downloads)
    tree = folder / "tree"
    for package in sorted(downloads.glob("*.deb")):
        run("dpkg-deb", "-x", str(package), str(tree))
    return tree


def _stands_for(meta_package: str) -> str:
    real = _FIRST.search(run("apt-cache", *_DEPENDS, meta_package))
    if real is None:
        raise Unavailable(f"apt does not know the package {meta_package}")
    return real[1]
