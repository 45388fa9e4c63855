"""What every command gets: which daemon, which key, and how to print."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Parameter

from hatchvm.base.errors import Invalid
from hatchvm.base.paths import DataPaths
from hatchvm.cli import render
from hatchvm.client import Client

_DEFAULT_ADDR: Final = "127.0.0.1:8080"


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One run of the command."""

    url: str
    json: bool

    def client(self) -> Client:
        """A client with the key of this machine's environment or data directory, if there is one."""
        return Client(self.url, find_key())

    def show(self, thing: Mapping[str, Any]) -> None:
        """Print one thing, every field."""
        render.thing(thing, as_json=self.json)

    def show_all(self, things: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        """Print a list: every field as JSON, `columns` for people."""
        render.things(things, columns, as_json=self.json)

    def show_deleted(self, what: str) -> None:
        """Say that something is gone."""
        render.done({"status": "deleted"}, f"{what} deleted", as_json=self.json)


#: How a command asks for its session; it is no option of the command line.
InSession = Annotated[Session, Parameter(parse=False)]


def find_url(option: str | None) -> str:
    """The daemon: `--url`, else `HATCH_URL`, else the address that `hatchvm serve` would listen on."""
    url = option or os.environ.get("HATCH_URL")
    if url:
        return url
    host, colon, port = (os.environ.get("HATCH_HTTP_ADDR") or _DEFAULT_ADDR).rpartition(":")
    if not colon:
        raise Invalid("HATCH_HTTP_ADDR must be host:port")
    # A daemon that listens on every address is reached here through the loopback.
    return f"http://{'127.0.0.1' if host in ('', '0.0.0.0', '[::]') else host}:{port}"


def find_key() -> str | None:
    """The key: `HATCH_API_KEY`, else the file that the daemon's first start left in its data directory."""
    key = os.environ.get("HATCH_API_KEY")
    if key:
        return key.strip()
    path = DataPaths(Path(os.environ.get("HATCH_DATA_DIR") or "data")).api_key
    try:
        return path.read_text("ascii").strip() or None
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Invalid(f"the API key in {path} cannot be read: {error}") from None
