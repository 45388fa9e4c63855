"""`hatchvm`: the command. It runs a command line and turns every error into one sentence and an exit code.

Nothing is imported before it is needed: a command's module when that command runs, cyclopts and rich not even for the
first page of help.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

from hatchvm.base.errors import EXIT_CODE, HatchError, Kind
from hatchvm.cli.commands import first_page

_ADVICE: Final = {
    Kind.INVALID: "--help says what is expected",
    Kind.UNAUTHENTICATED: "set HATCH_API_KEY, or set HATCH_DATA_DIR to the daemon's data directory",
    Kind.NOT_FOUND: "`list` shows what there is",
    Kind.CONFLICT: "look at it with `get`, then decide",
    Kind.INTERNAL: "the daemon's log says more",
}
#: What shells report for a program that an interrupt or a closed pipe ended.
_INTERRUPTED: Final = 130
_PIPE_CLOSED: Final = 141


def main() -> None:
    """The entry point of the `hatchvm` command."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run one command line; its exit code."""
    if not argv or argv[0] in ("--help", "-h"):
        print(first_page())
        return 0
    if argv[0] == "--version":
        print(_version())
        return 0
    try:
        return _run(argv)
    except HatchError as error:
        return fail(error.message, error.kind, error.retry_after_s)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output left. Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED


def fail(sentence: str, kind: Kind, retry_after_s: float | None = None) -> int:
    """Say on stderr what went wrong and what to do next; the exit code."""
    advice = f"try again in {retry_after_s:.0f} s" if retry_after_s is not None else _ADVICE.get(kind, "")
    print(f"hatchvm: {sentence}" + (f" ({advice})" if advice else ""), file=sys.stderr)
    return EXIT_CODE[kind]


def _run(argv: Sequence[str]) -> int:
    from cyclopts import CycloptsError

    from hatchvm.cli.launch import launch
    from hatchvm.client.errors import ApiError

    try:
        return launch(argv)
    except CycloptsError as error:
        return fail(str(error).rstrip("."), Kind.INVALID)
    except ApiError as error:
        return fail(str(error), error.kind, error.retry_after_s)


def _version() -> str:
    from importlib.metadata import version

    return version("hatchvm")
