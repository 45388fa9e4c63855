"""Starting the daemon as a process: settings, logging, the event loop."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable
from pathlib import Path

from hatchvm.base.loop import loop_factory
from hatchvm.server.config import ignored, load
from hatchvm.server.daemon import serve
from hatchvm.telemetry import logs


def run(env_file: Path | None, say: Callable[[str], None]) -> None:
    """Serve until a signal. Raises HatchError if it cannot start."""
    config = load(env_file)
    logs.configure(config.log_level, logs.format_of(config.log_format))
    for name in ignored():
        say(f"{name} means nothing to this version and is ignored")
    _raise_descriptor_limit()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(config, say=say))


def _raise_descriptor_limit() -> None:
    """A connection has a descriptor on each side, and the usual soft limit of 1,024 is for programs that `select`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
