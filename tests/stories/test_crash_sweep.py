"""Kill the daemon before any of its steps: the next one puts everything right. See `hatchvm.testing.crash`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

#: The sweep is cut in shares, so that workers can take one each.
SHARES: Final = 10


@pytest.mark.parametrize("share", range(1, SHARES + 1))
def test_a_daemon_killed_at_any_step_leaves_nothing_that_the_next_cannot_put_right(tmp_path: Path, share: int) -> None:
    argv = [sys.executable, "-m", "hatchvm.testing.crash", str(tmp_path), str(share), str(SHARES)]
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    steps = int(result.stdout.split()[0])
    assert steps > 100, "the story became suspiciously short"
