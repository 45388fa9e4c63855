"""Running the host's programs that build images: found even where sbin is not on PATH, failing with one sentence."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from hatchvm.base.errors import Unavailable, Unsupported


def run(
    *argv: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, complaints: BinaryIO | None = None
) -> str:
    """What the program printed, in the C locale. With `complaints`, where its stderr goes: nothing.

    Raises Unsupported if it is not installed, Unavailable (stderr in `detail`) if it fails.
    """
    done = subprocess.run(
        [path_of(argv[0]), *argv[1:]],
        cwd=cwd,
        env={**os.environ, "LC_ALL": "C", **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if complaints is None else subprocess.DEVNULL,
        stderr=subprocess.PIPE if complaints is None else complaints,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise Unavailable(f"{argv[0]} failed while building an image", detail=(done.stderr or "")[-2000:])
    return done.stdout or ""


def path_of(program: str) -> str:
    """Raises Unsupported if it is not installed."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise Unsupported(f"building an image needs the program {program}, which is not installed")
    return found
