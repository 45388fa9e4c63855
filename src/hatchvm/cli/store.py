"""`hatchvm store`."""

from __future__ import annotations

from typing import Final

from cyclopts import App

from hatchvm.base.errors import EXIT_CODE, Kind
from hatchvm.base.units import format_bytes
from hatchvm.cli import render
from hatchvm.cli.session import InSession
from hatchvm.client.answers import Amount, StoreAudit, StoredKey

app = App(name="store", help="Look after what is stored.")

_PROBLEMS: Final = ("kind", "snapshot_id", "key", "message")


@app.command
def gc(*, grace: str | None = None, session: InSession) -> None:
    """Remove what no snapshot needs any more. The daemon does so by itself, after a grace period.

    Parameters
    ----------
    grace
        Remove what has been unneeded for this long, such as 1h; 0s for everything. As configured if not given.
    """
    with session.client() as client, render.waiting("collecting"):
        done = client.collect(grace)
    if session.json:
        session.show(done)
    else:
        session.show(
            {
                "removed": _amount(done["deleted"]),
                "kept": _amount(done["kept"]),
                "of that not needed, but too young": _amount(done["waiting"]),
            }
        )


@app.command
def audit(*, session: InSession) -> int:
    """Show what is stored, and what is wrong with it. The exit code is 10 if a snapshot cannot be restored, else 0."""
    with session.client() as client, render.waiting("looking"):
        found = client.audit()
    if session.json:
        session.show(found)
    else:
        session.show(_summary(found))
        if found["problems"]:
            session.show_all(found["problems"], _PROBLEMS)
    return 0 if found["status"] == "ok" else EXIT_CODE[Kind.CORRUPT]


def _summary(found: StoreAudit) -> dict[str, str]:
    keys = {_key(key): f"{format_bytes(key['bytes'])}{_about(key)}" for key in found["keys"]}
    return {
        "status": found["status"],
        "stored": format_bytes(found["stored_bytes"]),
        "snapshots": _amount(found["manifests"]),
        "packs": _amount(found["packs"]),
        "of that shared": _amount(found["shared"]),
        "deleted": _amount(found["trash"]),
        "unneeded": f"{_amount(found['orphaned'])}, {_amount(found['due'])} of it old enough to go",
        "not ours": _amount(found["unknown"]),
        **keys,
    }


def _amount(amount: Amount) -> str:
    count = amount["objects"]
    return f"{count} object{'' if count == 1 else 's'}, {format_bytes(amount['bytes'])}"


def _key(key: StoredKey) -> str:
    return "not encrypted" if key["key_id"] is None else f"encrypted with {key['key_id']}"


def _about(key: StoredKey) -> str:
    if not key["held"]:
        return ": its key is lost"
    return "" if key["current"] else ": an old key, needed until this is 0"
