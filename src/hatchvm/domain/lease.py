"""A lease: somebody's word that a VM has work to do, until a moment. It keeps it awake as a connection does."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

MIN_TTL_S: Final = 1.0
MAX_TTL_S: Final = 30 * 24 * 3600.0
MAX_REASON: Final = 200
#: Of one VM at a time.
MAX_LEASES: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One lease, as its row has it. `reason` is the user's own text."""

    id: str
    vm_id: str
    reason: str
    created_at: datetime
    expires_at: datetime

    def lasts(self, now: datetime) -> bool:
        """True until its moment. One that has ended is no lease any more: it cannot be renewed."""
        return now < self.expires_at
