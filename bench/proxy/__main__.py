"""`make bench-proxy`: CPU time per request and requests a second, against other proxies in the same rounds.

The proxy has one core, load and guests the other.
"""

from __future__ import annotations

import argparse
import pstats
import resource
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from bench.proxy import scale
from bench.proxy.cases import CASES, Case
from bench.proxy.measure import Sample, measure, profile
from bench.proxy.peers import PEERS
from bench.report import FOLDER, Row, machine, median, save

_BASE: Final = "nginx"
_OURS: Final = "hatch"
_SCALE: Final = "scale"
_PROFILE_LINES: Final = 40


def main() -> None:
    options = argparse.ArgumentParser(prog="python -m bench.proxy", description=__doc__)
    options.add_argument("--peers", nargs="+", choices=PEERS, default=[_BASE, _OURS], help="besides nginx")
    options.add_argument("--all", action="store_true", help="all peers")
    options.add_argument("--cases", nargs="+", choices=[*CASES, _SCALE], default=[*CASES, _SCALE])
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--seconds", type=int, default=2, help="of load for each turn")
    options.add_argument("--profile", action="store_true", help="instead: where Hatch's Python spends its time")
    asked = options.parse_args()
    wanted = [peer for peer in PEERS if asked.all or peer in asked.peers or peer == _BASE]
    peers = [peer for peer in wanted if not PEERS[peer].missing]
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    cases = [name for name in CASES if name in asked.cases]
    if asked.profile:
        for name in cases:
            _profile(name, seconds=asked.seconds)
        return
    if cases:
        _compare(cases, peers, rounds=asked.rounds, seconds=asked.seconds)
    if _SCALE in asked.cases:
        with tempfile.TemporaryDirectory(prefix="hatchvm-bench-") as folder:
            scale.run(Path(folder), rounds=asked.rounds)


def _compare(cases: Sequence[str], peers: Sequence[str], *, rounds: int, seconds: int) -> None:
    found: dict[str, dict[str, list[Sample]]] = {}
    for name in cases:
        able = [peer for peer in peers if name not in PEERS[peer].cannot]
        with tempfile.TemporaryDirectory(prefix="hatchvm-bench-") as folder:
            found[name] = measure(CASES[name], able, Path(folder), rounds=rounds, seconds=seconds)
        _show(name, found[name])
        save("proxy", [row for name, samples in found.items() for row in _rows(CASES[name], samples)])
    _table(peers, found)


def _profile(name: str, *, seconds: int) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    into = FOLDER / f"proxy-{name}.prof"
    with tempfile.TemporaryDirectory(prefix="hatchvm-bench-") as folder:
        profile(CASES[name], Path(folder), into, seconds=seconds)
    pstats.Stats(str(into)).sort_stats("tottime").print_stats(_PROFILE_LINES)


def _show(name: str, samples: Mapping[str, list[Sample]]) -> None:
    figures = [
        f"{peer} {median(_ratios(samples, peer)):.2f} ({_cpu_us(taken):.1f} µs)" for peer, taken in samples.items()
    ]
    print(f"{name}: {', '.join(figures)}", flush=True)


def _table(peers: Sequence[str], found: Mapping[str, Mapping[str, list[Sample]]]) -> None:
    title = f"CPU time a request against {_BASE} (µs; requests a second against {_BASE}) ({machine()})"
    table = Table(title=title, title_justify="left")
    table.add_column("case")
    for peer in peers:
        table.add_column(peer, justify="right")
    for name, samples in found.items():
        table.add_row(CASES[name].title, *(_cell(name, samples, peer) for peer in peers))
    Console(width=50 + 22 * len(peers)).print(table)


def _cell(name: str, samples: Mapping[str, list[Sample]], peer: str) -> str:
    if peer not in samples:
        return PEERS[peer].cannot[name]
    taken = samples[peer]
    return f"{median(_ratios(samples, peer)):.2f} ({_cpu_us(taken):.0f}; {_speed(samples, peer):.2f})"


def _rows(case: Case, samples: Mapping[str, list[Sample]]) -> list[Row]:
    rows = []
    for peer, taken in samples.items():
        if peer != _OURS and _OURS in samples:
            ratios = _ratios(samples, _OURS, against=peer)
            name = f"{case.title}: hatch's CPU against {peer}"
            rows += [Row(name, median(ratios), "ratio", case.goals.get(peer))]
            rows += [Row(f"{name}, least", min(ratios), "ratio"), Row(f"{name}, most", max(ratios), "ratio")]
        rows.append(Row(f"{case.title}: CPU of {peer} against {_BASE}", median(_ratios(samples, peer)), "ratio"))
        rows.append(Row(f"{case.title}: CPU of {peer}", _cpu_us(taken), "µs/request"))
        rows.append(Row(f"{case.title}: {peer} against {_BASE}", _speed(samples, peer), "ratio of requests/s"))
        rows.append(Row(f"{case.title}: {peer}", median([sample.rate for sample in taken]), "requests/s"))
    return rows


def _ratios(samples: Mapping[str, list[Sample]], peer: str, against: str = _BASE) -> list[float]:
    """CPU time a request, in every round."""
    return [ours.cpu_us / theirs.cpu_us for ours, theirs in zip(samples[peer], samples[against], strict=True)]


def _speed(samples: Mapping[str, list[Sample]], peer: str) -> float:
    """Requests a second against nginx, the median over rounds."""
    return median([ours.rate / theirs.rate for ours, theirs in zip(samples[peer], samples[_BASE], strict=True)])


def _cpu_us(samples: Sequence[Sample]) -> float:
    return median([sample.cpu_us for sample in samples])


if __name__ == "__main__":
    main()
