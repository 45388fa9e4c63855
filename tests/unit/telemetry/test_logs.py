"""Logs: one line of JSON an event, from structlog and the standard library alike."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

import pytest
import structlog

from hatchvm.telemetry import logs

#: Names that the product's description promises to whoever searches its logs.
PROMISED: Final = {
    "idle monitor started",
    "vm idle, triggering snapshot",
    "skipping idle snapshot, active SSH session",
    "idle snapshot failed",
    "snapshot created",
    "waking snapshotted vm",
    "vm restored",
    "idle monitor stopped",
}


@pytest.fixture
def out() -> Iterator[io.StringIO]:
    """Logging as configured, and as it was before afterwards."""
    root = logging.getLogger()
    handlers, level, configured = root.handlers, root.level, structlog.get_config()
    quiet = {name: logging.getLogger(name).level for name in ("uvicorn.access", "alembic", "httpx2", "httpcore2")}
    quiet["asyncio"] = logging.getLogger("asyncio").level
    yield io.StringIO()
    root.handlers, root.level = handlers, level
    for name, before in quiet.items():
        logging.getLogger(name).setLevel(before)
    structlog.configure(**configured)


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_both_kinds_of_loggers_write_the_same_json(out: io.StringIO) -> None:
    logs.configure("info", "json", out)
    structlog.get_logger().info(logs.RESTORED, vm="vm-1", seconds=0.2)
    logging.getLogger("hatchvm.x").warning("ssh port not exposed", extra={"vm": "vm-1"})
    ours, theirs = lines(out)
    for line in (ours, theirs):
        assert datetime.fromisoformat(line.pop("time")).tzinfo is not None
    assert ours == {"msg": "vm restored", "level": "info", "vm": "vm-1", "seconds": 0.2}
    assert theirs == {"msg": "ssh port not exposed", "level": "warning", "vm": "vm-1"}


def test_an_exception_stays_on_its_line(out: io.StringIO) -> None:
    logs.configure("info", "json", out)
    try:
        raise LookupError("lost")
    except LookupError:
        logging.getLogger("hatchvm.x").exception("background task failed")
    (line,) = lines(out)
    assert "LookupError: lost" in line["exception"]


def test_the_level_holds_and_chatty_libraries_are_quiet(out: io.StringIO) -> None:
    logs.configure("info", "json", out)
    structlog.get_logger().debug("no")
    logging.getLogger("uvicorn.access").info("no")
    logging.getLogger("uvicorn.access").warning("yes")
    assert [line["msg"] for line in lines(out)] == ["yes"]


def test_a_terminal_gets_lines_for_people(out: io.StringIO) -> None:
    logs.configure("info", "console", out)
    structlog.get_logger().info(logs.STARTED, node="n1")
    assert "hatch started" in out.getvalue()
    assert not out.getvalue().startswith("{")


def test_the_promised_events_exist_and_no_two_share_a_name() -> None:
    names = [value for name, value in vars(logs).items() if name.isupper() and isinstance(value, str)]
    assert set(names) >= PROMISED
    assert len(names) == len(set(names))
