"""The size gate of `make check`: no source file over 400 non-blank lines, no test over 600, no folder over 20 modules.

Waivers live in pyproject.toml under [tool.hatchvm.sizes], one reason each; one that is no longer needed fails too, so
the list only shrinks. Functions, branches and parameters are gated by ruff.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
LIMITS: Final = {"src": 400, "bench": 400, "scripts": 400, "tests": 600}
MODULES_IN_A_FOLDER: Final = 20


def main() -> int:
    waived: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatchvm"]["sizes"]
    over = {name: found for name, found in _sizes().items() if found}
    problems = [f"{name}: {found}" for name, found in over.items() if name not in waived]
    problems += [f"{name}: its waiver is no longer needed, remove it" for name in waived if name not in over]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _sizes() -> dict[str, str]:
    """Path -> what is too large about it, or an empty string."""
    found: dict[str, str] = {}
    for top, limit in LIMITS.items():
        for path in sorted((ROOT / top).rglob("*.py")):
            lines = sum(1 for line in path.read_text().splitlines() if line.strip())
            found[str(path.relative_to(ROOT))] = f"{lines} lines, at most {limit}" if lines > limit else ""
        for folder in sorted({path.parent for path in (ROOT / top).rglob("*.py")}):
            modules = sum(1 for path in folder.glob("*.py") if path.name != "__init__.py")
            too_many = f"{modules} modules, at most {MODULES_IN_A_FOLDER}"
            found[str(folder.relative_to(ROOT))] = too_many if modules > MODULES_IN_A_FOLDER else ""
    return found


if __name__ == "__main__":
    sys.exit(main())
