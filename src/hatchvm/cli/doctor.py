"""`hatchvm doctor`: what this host can do, and what to install."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

from hatchvm.base.errors import EXIT_CODE, Kind
from hatchvm.cli.session import InSession

_MARK: Final = {"ok": "✓", "warn": "!", "fail": "✗"}


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
                print(f"   {'':<{width}}  → {finding.mend}")
    failed = any(finding.verdict == "fail" for finding in findings)
    return EXIT_CODE[Kind.UNSUPPORTED] if failed else 0
