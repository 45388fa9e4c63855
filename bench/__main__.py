"""`make bench`: what Hatch promises about time and space, measured. Every part can be run alone."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench import fetched, lifecycle, prompt, ssh, stored


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    options.add_argument(
        "parts", nargs="*", metavar="PART", help="lifecycle, stored, restore, ssh, prompt; default: all"
    )
    options.add_argument("--wakes", type=int, default=60)
    options.add_argument("--pauses", type=int, default=15)
    options.add_argument("--boots", type=int, default=5)
    options.add_argument("--rounds", type=int, default=9, help="of the other parts")
    asked = options.parse_args()
    parts: dict[str, Callable[[Path], None]] = {
        "lifecycle": lambda at: lifecycle.run(at, wakes=asked.wakes, pauses=asked.pauses, boots=asked.boots),
        "stored": lambda at: stored.run(at, rounds=asked.rounds),
        "restore": lambda at: fetched.run(at, rounds=asked.rounds),
        "ssh": lambda at: ssh.run(at, rounds=asked.rounds),
        "prompt": lambda at: prompt.run(at, rounds=asked.rounds),
    }
    for unknown in set(asked.parts) - set(parts):
        options.error(f"there is no part {unknown}")
    for name, part in parts.items():
        if not asked.parts or name in asked.parts:
            with tempfile.TemporaryDirectory(prefix="hatchvm-bench-") as folder:
                part(Path(folder))


if __name__ == "__main__":
    main()
