"""Writes docs/reference/vmm-conformance.md from a run of the VMM drivers' conformance tests.

    scripts/conformance_table.py           run them here and write the page: minutes, as root
    scripts/conformance_table.py --check   run nothing: the page has the tests that there are (part of `make check`)

Tests say where they belong: `feature(row)` and, mostly by way of their driver, `column(name)`. A cell tells what their
run came to on the machine that wrote the page; where it is not all of them, how many.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs" / "reference" / "vmm-conformance.md"
TESTS: Final = sorted(str(path) for path in (ROOT / "tests" / "conformance").glob("test_vmm*.py"))
ROWS: Final = (
    *("create", "network", "suspend", "wake", "adopt", "kill", "snapshot", "diff", "restore elsewhere"),
    *("disk-only boot", "stats"),
)
COLUMNS: Final = ("QEMU", "Firecracker (stand-in)", "Firecracker (real, a counter)", "Firecracker (real, a kernel)")
_COUNTED: Final = re.compile(r"\((\d+) tests?\)")
_HEAD: Final = """# What each VMM does

Written by `scripts/conformance_table.py`: each cell is what its tests came to when the page was written. QEMU's driver
and Firecracker's are under the same suite, `tests/conformance/test_vmm.py`. The *stand-in* speaks Firecracker's API and
plays a guest without a processor. The *real* one runs twice, where `HATCH_FIRECRACKER_BIN` and `HATCH_JAILER_BIN` name
it: under `tests/conformance/test_vmm_firecracker.py` with a guest that only *counts* in its memory, for which any KVM
will do, and under the suite itself with the image `tiny`, which needs KVM that runs a *kernel*.

"""
Cell = tuple[str, str]


class Tests:
    """A plugin of pytest: which tests there are in each cell, and what became of them."""

    def __init__(self) -> None:
        self.cells: dict[Cell, list[str]] = defaultdict(list)
        self.outcomes: dict[str, str] = {}
        self.wrong: list[str] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            column = item.get_closest_marker("column")
            for row in item.iter_markers("feature") if column else ():
                self.cells[row.args[0], column.args[0]].append(item.nodeid)  # type: ignore[union-attr]
        self.wrong += [f"no such cell: {row}, {column}" for row, column in self.cells if not _known(row, column)]
        self.wrong += [f"no test for {row}" for row in ROWS if not any(cell[0] == row for cell in self.cells)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and isinstance(report.longrepr, tuple):
            self.outcomes[report.nodeid] = report.longrepr[2].removeprefix("Skipped: ")
        elif report.failed:
            self.outcomes[report.nodeid] = "failed"
        elif report.when == "call":
            self.outcomes[report.nodeid] = "passed"


def main(argv: list[str]) -> int:
    """The exit code: 0 unless a test failed, or the page is not that of the tests."""
    check = argv == ["--check"]
    tests = Tests()
    how = ["--collect-only", "-qqq"] if check else ["-q"]
    status = pytest.main([*how, *TESTS], plugins=[tests])
    problems = list(tests.wrong)
    if check:
        problems += compared(PAGE.read_text() if PAGE.exists() else "", tests.cells)
    else:
        PAGE.write_text(page(tests.cells, tests.outcomes))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else int(status)


def page(cells: Mapping[Cell, list[str]], outcomes: Mapping[str, str]) -> str:
    """The whole page."""
    lines = [f"| | {' | '.join(COLUMNS)} |", f"|---{'|---' * len(COLUMNS)}|"]
    for row in ROWS:
        told = [cell([outcomes[test] for test in cells.get((row, column), ())]) for column in COLUMNS]
        lines.append(f"| {row} | {' | '.join(told)} |")
    lines.append("")
    return _HEAD + "\n".join(lines)


def cell(outcomes: list[str]) -> str:
    """`passed (3 tests)`, `not run here: needs KVM (1 test)`; several kinds one after the other."""
    counted = sorted(Counter(outcomes).items(), key=lambda each: ("failed", "passed", each[0]).index(each[0]))
    return "; ".join(f"{outcome} ({n} test{'' if n == 1 else 's'})" for outcome, n in counted) or "no test"


def compared(text: str, cells: Mapping[Cell, list[str]]) -> list[str]:
    """What is not as the page says: cells with more or fewer tests."""
    table = [[part.strip() for part in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    written = {row: dict(zip(COLUMNS, told, strict=False)) for row, *told in table}
    problems = []
    for row in ROWS:
        for column in COLUMNS:
            on_page = sum(map(int, _COUNTED.findall(written.get(row, {}).get(column, ""))))
            there = len(cells.get((row, column), ()))
            if on_page != there:
                problems.append(f"{PAGE.name}: {row}, {column}: {on_page} tests, there are {there}; write it anew")
    return problems


def _known(row: str, column: str) -> bool:
    return row in ROWS and column in COLUMNS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
