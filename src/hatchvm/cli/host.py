"""What runs on the host itself: `hatchvm serve`, the daemon; `hatchvm network`; `hatchvm doctor`."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Final

from cyclopts import App

from hatchvm.base.errors import EXIT_CODE, Kind
from hatchvm.cli.session import InSession

_MARK: Final = {"ok": "✓", "warn": "!", "fail": "✗"}

network = App(name="network", help="Look after the bridge that VMs are plugged into.")


def serve(*, env_file: Path | None = None) -> int:
    """Run the daemon until it is told to go; running VMs outlive it.

    Parameters
    ----------
    env_file
        A file with HATCH_* settings, one NAME=value a line; the environment wins.
    """
    from hatchvm.server.main import run

    run(env_file, lambda line: print(line, flush=True))
    return 0


@network.command
def remove(*, env_file: Path | None = None) -> None:
    """Remove bridge, filter, DHCP server and namespace of the configured bridge from this host. Needs no daemon.

    Parameters
    ----------
    env_file
        A file with HATCH_* settings, as `hatchvm serve` had it.
    """
    from hatchvm.base.errors import Invalid
    from hatchvm.server.config import load
    from hatchvm.server.wiring import bridge_of

    bridge = bridge_of(load(env_file))
    if bridge is None:
        raise Invalid("the configuration names no bridge; set HATCH_NETWORK=bridge and the settings the daemon had")
    asyncio.run(bridge.remove())
    print(f"removed: {bridge.bridge.where}")


def doctor(*, session: InSession) -> int:
    """Check what this host can do; exit code 6 if no VM can run here."""
    import json

    from hatchvm.server.config import load
    from hatchvm.server.doctor import examine_now

    findings = examine_now(load())
    if session.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        width = max(len(finding.subject) for finding in findings)
        for finding in findings:
            print(f" {_MARK[finding.verdict]} {finding.subject:<{width}}  {finding.found}")
            if finding.mend:
                print(f"   {'':<{width}}  → " + finding.mend.replace("\n", f"\n   {'':<{width}}    "))
    failed = any(finding.verdict == "fail" for finding in findings)
    return EXIT_CODE[Kind.UNSUPPORTED] if failed else 0
