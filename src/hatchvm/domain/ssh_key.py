"""The SSH public keys of users who may reach VMs through Hatch's own SSH door."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SSHKey:
    """One key. `public_key`: its type and base64 body, as in `authorized_keys`, without the comment.

    `fingerprint`: `SHA256:` and 43 characters of base64, as OpenSSH prints it.
    """

    id: str
    name: str
    public_key: str
    fingerprint: str
    created_at: datetime
