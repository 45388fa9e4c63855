"""`hatchvm image pull`: a container image from a registry, fetched by skopeo into an OCI layout."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from hatchvm.base.errors import Invalid, Unavailable, Unsupported

#: A registry and its port, a path, a tag, a digest: nothing that skopeo could take for an option or another transport.
_REFERENCE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*(@sha256:[0-9a-f]{64})?")
_MAX_REFERENCE: Final = 512


def pull(reference: str, target: Path, *, tls_verify: bool = True) -> None:
    """Fetch the image for linux/amd64 that `reference` names (`nginx`, `ghcr.io/owner/name:tag`) into a new layout.

    Logins are those of skopeo and podman. `tls_verify`: False also allows a registry without TLS. Raises Invalid for
    what is no reference, Unsupported without skopeo, Unavailable with skopeo's last words if it fails.
    """
    if len(reference) > _MAX_REFERENCE or not _REFERENCE.fullmatch(reference):
        raise Invalid(
            f"{reference[:_MAX_REFERENCE]!r} is not the name of a container image, such as docker.io/nginx:1.27"
        )
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        raise Unsupported(
            "pulling needs the program skopeo: apt-get install skopeo; or import what `docker save` writes"
        )
    done = subprocess.run(
        [
            *(skopeo, "--override-os=linux", "--override-arch=amd64", "copy", "--quiet"),
            *(f"--src-tls-verify={str(tls_verify).lower()}", f"docker://{reference}", f"oci:{target}:image"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise Unavailable(f"pulling {reference} failed: {_reason(done.stderr)}", detail=done.stderr[-2000:])


def _reason(said: str) -> str:
    """The innermost cause in skopeo's last line, which may hold quotes escaped by its logger."""
    lines = said.strip().splitlines() or ["skopeo said nothing"]
    return lines[-1].rpartition(": ")[2].strip(' "')[:200] or "skopeo said nothing"
