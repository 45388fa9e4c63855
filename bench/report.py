"""Rows of a benchmark: a table for people, `build/bench/<name>.json` for programs."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

FOLDER: Final = Path("build/bench")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `goal` in the same unit, an upper bound; None: only reported."""

    name: str
    value: float
    unit: str
    goal: float | None = None

    @property
    def ok(self) -> bool | None:
        return None if self.goal is None else self.value <= self.goal


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank; with few values the 99th percentile is the largest."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered) + 0.5) - 1))]


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def publish(name: str, title: str, rows: Sequence[Row]) -> None:
    """Print the table and write the file."""
    save(name, rows)
    table = Table(title=title, title_justify="left")
    for column in ("figure", "value", "unit", "goal", ""):
        table.add_column(column, justify="right" if column in ("value", "goal") else "left")
    for row in rows:
        verdict = {True: "held", False: "MISSED", None: ""}[row.ok]
        goal = "" if row.goal is None else f"≤ {row.goal:g}"
        table.add_row(row.name, f"{row.value:.3g}" if row.value < 1000 else f"{row.value:.0f}", row.unit, goal, verdict)
    Console(width=110).print(table)


def save(name: str, rows: Sequence[Row]) -> None:
    """Write the file only."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    records = [{**asdict(row), "ok": row.ok} for row in rows]
    (FOLDER / f"{name}.json").write_text(json.dumps(records, indent=2) + "\n")


def machine() -> str:
    """What the figures were taken on."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    return f"{os.cpu_count()} CPUs, {memory_gib:.0f} GiB, Linux {platform.release()}"
