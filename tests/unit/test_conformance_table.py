"""The conformance table: what its cells say, and when it is not the one that belongs to the tests."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

SCRIPT: Final = Path(__file__).parents[2] / "scripts" / "conformance_table.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("conformance_table", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_cell_tells_every_outcome_and_the_worst_one_first(script: ModuleType) -> None:
    why = "not run here: needs KVM"
    assert script.cell(["passed"] * 3) == "passed (3 tests)"
    assert script.cell([why, "passed", "failed", why]) == f"failed (1 test); passed (1 test); {why} (2 tests)"
    assert script.cell([]) == "no test"


def test_the_page_is_that_of_the_tests_until_one_comes_or_goes(script: ModuleType) -> None:
    cells = {("wake", "QEMU"): ["a", "b"], ("kill", "QEMU"): ["b"], ("kill", "Firecracker (real, a kernel)"): ["c"]}
    page = script.page(cells, {"a": "passed", "b": "not run here: needs KVM", "c": "failed"})
    assert "| wake | passed (1 test); not run here: needs KVM (1 test) | no test | no test |" in page
    assert script.compared(page, cells) == []
    more: Mapping[tuple[str, str], list[str]] = {**cells, ("wake", "QEMU"): ["a", "b", "d"]}
    assert script.compared(page, more) == ["vmm-conformance.md: wake, QEMU: 2 tests, there are 3; write it anew"]
    assert len(script.compared("", cells)) == 3
