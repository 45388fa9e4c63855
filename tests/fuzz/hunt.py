"""Coverage-guided fuzzing of the relay: `make fuzz`. A finding is a file to be added to `corpus/` once it is mended.

Arguments: seconds, and the folder where what was learnt is kept and findings are written.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import atheris

with atheris.instrument_imports(include=["hatchvm.edge.http.proto"]):
    from hatchvm.testing.edge.second_opinion import judge_text

HERE: Final = Path(__file__).parent
LONGEST_INPUT: Final = 4096


def main() -> None:
    seconds, folder = sys.argv[1], Path(sys.argv[2])
    learnt = folder / "learnt"
    learnt.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST_INPUT}",
        f"-dict={HERE / 'words.dict'}",
        f"-artifact_prefix={folder}/",
        "-len_control=0",
        "-timeout=30",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(learnt), str(HERE / "corpus")], judge_text)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
