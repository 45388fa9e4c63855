"""What the calls work with, handed to them by FastAPI's dependency injection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from prometheus_client import CollectorRegistry

from hatchvm.ports.house import House
from hatchvm.ports.identity import Verifier


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The house behind the door, and the few facts about this host that answers mention."""

    house: House
    verifier: Verifier
    base_url_for: Callable[[str], str]  # subdomain -> URL of the proxy
    socket_path_for: Callable[[str], str]  # VM id -> path of its VMM's control socket
    registry: CollectorRegistry


def context_of(request: Request) -> Context:
    """The context `create_app` put there."""
    context: Context = request.app.state.context
    return context


async def _inject(request: Request) -> Context:
    # `async`, though nothing waits: FastAPI sends plain functions through a thread pool.
    return context_of(request)


Ctx = Annotated[Context, Depends(_inject)]
