"""Printing: tables for people, JSON for programs. Colour only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

_STATE_STYLE: Final = {"running": "green", "snapshotted": "blue", "error": "red", "stopped": "dim"}
#: Wide enough that no column is cut when a program or a file reads the table.
_PIPE_WIDTH: Final = 10_000


def thing(fields: Mapping[str, Any], *, as_json: bool) -> None:
    """One thing: its fields, one a line."""
    if as_json:
        _print_json(fields)
    else:
        _print_table(None, [(name, value) for name, value in fields.items() if value not in (None, "", {})])


def things(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, as_json: bool) -> None:
    """A list of things; people see `columns`."""
    if as_json:
        _print_json(rows)
    elif rows:
        _print_table(columns, [[row[column] for column in columns] for row in rows])
    else:
        print("none", file=sys.stderr)


def line(fields: Mapping[str, Any], columns: Sequence[str], *, as_json: bool) -> None:
    """One line of a stream, out at once."""
    if as_json:
        print(json.dumps(fields), flush=True)
    else:
        print("  ".join(_plain(fields[column]) for column in columns), flush=True)


def done(fields: Mapping[str, Any], sentence: str, *, as_json: bool) -> None:
    """Something happened that has no fields worth a table."""
    if as_json:
        _print_json(fields)
    else:
        print(sentence)


@contextmanager
def waiting(words: str) -> Iterator[None]:
    """Show on a terminal's stderr that something is going on, until it is over."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(words):
        yield


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def _print_table(columns: Sequence[str] | None, rows: Sequence[Sequence[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    on_terminal = sys.stdout.isatty()
    table = Table(box=None, pad_edge=False, show_header=columns is not None, header_style="bold")
    for column in columns or ("", ""):
        table.add_column(column.removesuffix("_id").replace("_", " ").upper(), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_plain(value), style=_STATE_STYLE.get(str(value), "")) for value in row))
    console = Console(width=None if on_terminal else _PIPE_WIDTH, no_color=not on_terminal, highlight=False)
    # Printed by Python and not by rich, which would end the process by itself when the pipe is closed.
    with console.capture() as page:
        console.print(table)
    print(page.get(), end="")


def _plain(value: object) -> str:
    """Text without control characters: a guest's words must not drive the terminal."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = json.dumps(value) if isinstance(value, dict) else str(value)
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
