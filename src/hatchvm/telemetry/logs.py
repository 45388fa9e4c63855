"""Logging: structured events, JSON for machines, colour on a terminal. Names of events are what operators search for.

An event is a constant below plus fields (`vm`, `snapshot`, `error`, …); text is never built from values, and no secret,
key or `user_data` is ever a field.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Final, Literal, TextIO

import structlog

IDLE_STARTED: Final = "idle monitor started"
IDLE_STOPPED: Final = "idle monitor stopped"
IDLE_SUSPEND: Final = "vm idle, triggering snapshot"
IDLE_SSH: Final = "skipping idle snapshot, active SSH session"
IDLE_FAILED: Final = "idle snapshot failed"
IDLE_CHECKED: Final = "idle check"
SNAPSHOT_CREATED: Final = "snapshot created"
SNAPSHOT_STORED: Final = "snapshot stored"
SNAPSHOT_NOT_REMOVED: Final = "old snapshot could not be removed"
SNAPSHOT_UPLOAD_FAILED: Final = "snapshot upload failed"
WAKING: Final = "waking snapshotted vm"
RESTORED: Final = "vm restored"
WAKE_FAILED: Final = "wake failed"
VM_CREATED: Final = "vm created"
VM_DELETED: Final = "vm deleted"
VM_STATE: Final = "vm state"
VM_ENDED: Final = "vmm ended by itself"
SUSPEND_TAKEN_BACK: Final = "suspend taken back"
COLLECTED: Final = "unneeded stored data removed"
COLLECT_FAILED: Final = "unneeded stored data could not be removed"
ADOPTED: Final = "vm adopted"
STORE_BEHIND: Final = "a row could not be written"
SINGLE_WRITER: Final = "the object store ignores conditional writes"
SWEPT: Final = "leftovers removed"
SSH_GATEWAY_STARTED: Final = "ssh wake gateway started"
SSH_LISTENING: Final = "ssh gateway: listening"
SSH_NOT_LISTENING: Final = "ssh gateway: cannot listen"
SSH_REFUSED: Final = "ssh gateway: client refused"
SSH_FRONT_STARTED: Final = "ssh front started"
SSH_LOGIN: Final = "ssh front: login"
SSH_LOGIN_REFUSED: Final = "ssh front: login refused"
GUEST_NOT_PUT_RIGHT: Final = "guest not put right after its wake"
DOMAIN_UNPROVEN: Final = "domain's proof is missing"
DOMAIN_LOST: Final = "domain no longer served, its proof stays missing"
DOMAIN_NOT_CHECKED: Final = "domain's proof could not be checked"
REQUEST: Final = "request"
TLS_LISTENING: Final = "tls: listening"
CERTIFICATE_LOADED: Final = "certificate loaded"
CERTIFICATE_NOT_LOADED: Final = "certificate not loaded, the old one stays"
CERTIFICATE_EXPIRES: Final = "certificate expires"
WORKER_ENDED: Final = "proxy worker ended, starting another"
WORKER_LOST: Final = "proxy worker does not answer, ending it"
VMM: Final = "vmm chosen"
NOT_CONFINED: Final = "vms are not confined"
STARTED: Final = "hatch started"
STOPPED: Final = "hatch stopped"

Format = Literal["json", "console"]


def format_of(wanted: Format | None) -> Format:
    """The format that was asked for; else colour on a terminal and JSON elsewhere."""
    return wanted or ("console" if sys.stderr.isatty() else "json")


def configure(level: str, form: Format, stream: TextIO | None = None) -> None:
    """Send structlog's and the standard library's records through one pipe to `stream` (stderr)."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.format_exc_info,
    ]
    last: list[Any] = (
        [structlog.processors.EventRenamer("msg"), structlog.processors.JSONRenderer()]
        if form == "json"
        else [structlog.dev.ConsoleRenderer()]
    )
    if form == "console":
        shared.remove(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for noisy in ("uvicorn", "alembic", "httpx2", "httpcore2", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
