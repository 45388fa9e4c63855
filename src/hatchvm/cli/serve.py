"""`hatchvm serve`: the daemon."""

from __future__ import annotations

from pathlib import Path


def serve(*, env_file: Path | None = None) -> int:
    """Run the daemon until it is told to go; running VMs outlive it.

    Parameters
    ----------
    env_file
        A file with HATCH_* settings, one NAME=value a line; the environment wins.
    """
    from hatchvm.server.main import run

    run(env_file, lambda line: print(line, flush=True))
    return 0
