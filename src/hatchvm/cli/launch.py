"""Running a command: the options that every command has, and the session made from them."""

from __future__ import annotations

import asyncio
import difflib
import inspect
from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import App, Parameter

from hatchvm.base.errors import Invalid
from hatchvm.cli.commands import COMMANDS, first_page
from hatchvm.cli.session import Session, find_url


def launch(argv: Sequence[str]) -> int:
    """Run `argv`; its exit code. Raises CycloptsError or Invalid for a command line that makes no sense."""
    app = _app()

    def command_with_session(
        *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        json: Annotated[bool, Parameter(negative="")] = False,
        url: str | None = None,
    ) -> Any:
        """Run a command.

        Parameters
        ----------
        json
            Print JSON for programs.
        url
            The daemon; default HATCH_URL, else HATCH_HTTP_ADDR.
        """
        if not tokens or tokens[0] in ("--help", "-h"):
            return print(first_page())
        _check_command(tokens[0])
        command, bound, unparsed = app.parse_args(tokens, exit_on_error=False, print_error=False)
        extra = {"session": Session(url=find_url(url), json=json)} if "session" in unparsed else {}
        result = command(*bound.args, **bound.kwargs, **extra)
        return asyncio.run(result) if inspect.iscoroutine(result) else result

    app.meta.default(command_with_session)
    code = app.meta(argv, exit_on_error=False, print_error=False, result_action="return_value")
    return code if isinstance(code, int) else 0


def _app() -> App:
    app = App(name="hatchvm", version_flags=[])
    for name, (path, summary) in COMMANDS.items():
        app.command(path, name=name, help=summary)
    return app


def _check_command(name: str) -> None:
    """cyclopts would find that out too, but import every command to do so."""
    if name in COMMANDS:
        return
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f'; did you mean "{close[0]}"?' if close else ""
    raise Invalid(f'there is no {"option" if name.startswith("-") else "command"} "{name}"{hint}')
