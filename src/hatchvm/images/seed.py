"""The seed: the small ISO disk from which a guest's cloud-init (NoCloud) learns its name and what to run."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import pycdlib

from hatchvm.base.files import write_atomic


def write_seed(
    path: Path, *, instance_id: str, hostname: str, user_data: str | None, public_keys: Sequence[str] = ()
) -> None:
    """Write the disk to `path`, readable by its owner only. `user_data` is what the user gave, or None for nothing.

    `public_keys`: lines of `authorized_keys` for the image's usual login.

    The volume is `cidata`, the files are `meta-data` and `user-data` in Rock Ridge and Joliet, as cloud-init wants.
    """
    # A JSON string is a YAML string, whatever is in it.
    meta_data = f"instance-id: {json.dumps(instance_id)}\nlocal-hostname: {json.dumps(hostname)}\n"
    if public_keys:
        meta_data += "public-keys:\n" + "".join(f"  - {json.dumps(key)}\n" for key in public_keys)
    disk = pycdlib.PyCdlib()
    disk.new(interchange_level=3, vol_ident="cidata", joliet=3, rock_ridge="1.09")
    for short, name, text in (("META.", "meta-data", meta_data), ("USER.", "user-data", user_data or "")):
        data = text.encode()
        disk.add_fp(io.BytesIO(data), len(data), f"/{short};1", rr_name=name, joliet_path=f"/{name}")
    image = io.BytesIO()
    disk.write_fp(image)
    disk.close()
    write_atomic(path, image.getvalue(), mode=0o600, durable=False)
