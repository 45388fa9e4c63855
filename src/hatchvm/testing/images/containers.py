"""Container images and archives made by tests: layers as tar archives, an OCI layout, what `docker save` writes."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"


def member(name: str, kind: bytes = tarfile.REGTYPE, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """An entry of a tar archive; `fields` are attributes of its TarInfo."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(data)
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, kind, linkname=target)


def tar(members: Iterable[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def config(layers: Sequence[bytes], settings: Mapping[str, object], architecture: str = "amd64") -> bytes:
    """A configuration over uncompressed layers; `settings`: Entrypoint, Cmd, Env, ..."""
    diff_ids = [f"sha256:{sha256(layer)}" for layer in layers]
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    return json.dumps({"architecture": architecture, "os": "linux", "config": settings, "rootfs": rootfs}).encode()


def oci_layout(folder: Path, layers: Sequence[bytes], **settings: object) -> Path:
    """Write an OCI layout of gzip layers to the new folder, for two architectures; one of them is empty."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def add(data: bytes, media_type: str, **more: object) -> dict[str, object]:
        (blobs / sha256(data)).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{sha256(data)}", "size": len(data), **more}

    def manifest(layers: Sequence[bytes], architecture: str) -> dict[str, object]:
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": add(config(layers, settings, architecture), CONFIG),
            "layers": [add(gzip.compress(layer, mtime=0), f"{LAYER}+gzip") for layer in layers],
        }
        platform = {"os": "linux", "architecture": architecture}
        return add(json.dumps(document).encode(), MANIFEST, platform=platform)

    manifests = [manifest([], "arm64"), manifest(layers, "amd64")]
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
    whole = add(json.dumps(index).encode(), INDEX)
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [whole]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return folder


def folder_tar(folder: Path) -> bytes:
    """A folder's files as a tar archive."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return tar(member(str(path.relative_to(folder)), data=path.read_bytes()) for path in files)


def docker_archive(layers: Sequence[bytes], **settings: object) -> bytes:
    """What older versions of `docker save` write: the second occurrence of a layer is a link to the first."""
    document = config(layers, settings)
    entries, seen, names = [], dict[str, str](), []
    for number, layer in enumerate(layers):
        name = f"{number:064x}/layer.tar"
        first = seen.setdefault(sha256(layer), name)
        entries.append(member(name, data=layer) if first == name else link(name, f"../{first}"))
        names.append(name)
    images = [{"Config": f"{sha256(document)}.json", "RepoTags": ["test:latest"], "Layers": names}]
    entries.append(member(f"{sha256(document)}.json", data=document))
    entries.append(member("manifest.json", data=json.dumps(images).encode()))
    return tar(entries)
