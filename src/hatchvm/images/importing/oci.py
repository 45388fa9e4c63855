"""Container images as files: an OCI image layout (a folder or a tar archive), or what `docker save` writes.

Every blob is verified: an OCI one against the digest that refers to it, a layer also against its `diff_id`, which the
image's configuration names. Formats: OCI image specification (image-layout.md, manifest.md, config.md).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol, cast

from hatchvm.base.errors import Invalid
from hatchvm.images.importing import archive
from hatchvm.images.importing.archive import Spool
from hatchvm.images.importing.rootfs import Rootfs
from hatchvm.images.importing.sources import open_file
from hatchvm.images.importing.streams import Allowance, Unpacked

_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")
_MAX_JSON_BYTES: Final = 8 * 1024 * 1024
_MAX_LAYERS: Final = 1000
_MAX_FILES: Final = 20_000
_MAX_NESTED_INDEXES: Final = 4


@dataclass(frozen=True, slots=True)
class Layer:
    """`name`: of its file. `digest`: of that file, if something refers to it by one. `diff_id`: of its tar archive."""

    name: str
    digest: str | None
    diff_id: str


@dataclass(frozen=True, slots=True)
class Container:
    """What a container image says of itself. `config`: the object of that name in its configuration."""

    config: Mapping[str, Any]
    layers: tuple[Layer, ...]


class Files(Protocol):
    """Where a container image's files are."""

    def has(self, name: str) -> bool: ...

    def open(self, name: str) -> BinaryIO:
        """Raises Invalid if there is none."""


@contextmanager
def opened(path: Path) -> Iterator[Files]:
    """The files of a layout folder, or of a tar archive that is not compressed."""
    if path.is_dir():
        yield _Folder(path)
        return
    with open_file(path) as file:
        yield _Archive(file)


def read(files: Files) -> Container:
    """The image for Linux on amd64. Raises Invalid if there is none, or it is damaged."""
    container = _oci(files) if files.has("index.json") else _docker(files)
    if len(container.layers) > _MAX_LAYERS:
        raise Invalid(f"it has more than {_MAX_LAYERS} layers")
    return container


def unpack(files: Files, container: Container, rootfs: Rootfs, spool: Spool, allowance: Allowance) -> Iterator[int]:
    """Apply the layers to an empty tree; yields the number of each one before its turn. Raises Invalid."""
    for number, layer in enumerate(container.layers):
        yield number
        with files.open(layer.name) as file:
            reader = Unpacked(file, allowance)
            archive.apply(rootfs, reader, spool, layer=number, whiteouts=True)
            reader.drain()
        if layer.digest is not None and reader.packed_sha256 != layer.digest:
            raise Invalid(f"its layer {number + 1} is damaged: the digest is not the one that it should have")
        if reader.sha256 != layer.diff_id:
            raise Invalid(f"its layer {number + 1} is damaged: the digest is not the one that its configuration names")


def _oci(files: Files) -> Container:
    manifest = _manifest(files, _object(_json(files, "index.json")), _MAX_NESTED_INDEXES)
    document = _object(_blob(files, _object(manifest.get("config"))))
    diff_ids = _diff_ids(document)
    digests = [_digest(_object(layer).get("digest")) for layer in _list(manifest.get("layers"))]
    if len(digests) != len(diff_ids):
        raise Invalid("it is damaged: its manifest and its configuration name different numbers of layers")
    layers = tuple(Layer(_blob_name(digest), digest, diff) for digest, diff in zip(digests, diff_ids, strict=True))
    return Container(_object(document.get("config") or {}), layers)


def _manifest(files: Files, index: Mapping[str, Any], depth: int) -> Mapping[str, Any]:
    """The manifest in an index, or in an index within it, that is for us."""
    if depth == 0:
        raise Invalid("it has too many indexes within one another")
    ours = [descriptor for descriptor in map(_object, _list(index.get("manifests"))) if _is_ours(descriptor)]
    if not ours:
        raise Invalid("it has no image for linux/amd64")
    if len({str(descriptor.get("digest")) for descriptor in ours}) > 1 and "platform" not in ours[0]:
        raise Invalid(f"it holds {len(ours)} images; save one of them alone")
    found = _object(_blob(files, ours[0]))
    return _manifest(files, found, depth - 1) if "manifests" in found else found


def _is_ours(descriptor: Mapping[str, Any]) -> bool:
    platform = descriptor.get("platform")
    return platform is None or (_object(platform).get("os"), platform.get("architecture")) == ("linux", "amd64")


def _docker(files: Files) -> Container:
    if not files.has("manifest.json"):
        raise Invalid("it has neither index.json nor manifest.json, so it is no container image")
    images = _list(_json(files, "manifest.json"))
    if len(images) != 1:
        raise Invalid(f"it holds {len(images)} images; save one of them alone")
    image = _object(images[0])
    name = _text(image.get("Config"))
    content = _content(files, name)
    named = re.search(r"[0-9a-f]{64}", name)
    if named and named[0] != hashlib.sha256(content).hexdigest():
        raise Invalid("it is damaged: its configuration does not have the digest in its name")
    document = _object(_parsed(content))
    names, diff_ids = [_text(name) for name in _list(image.get("Layers"))], _diff_ids(document)
    if len(names) != len(diff_ids):
        raise Invalid("it is damaged: its manifest and its configuration name different numbers of layers")
    layers = tuple(Layer(name, None, diff) for name, diff in zip(names, diff_ids, strict=True))
    return Container(_object(document.get("config") or {}), layers)


def _diff_ids(document: Mapping[str, Any]) -> list[str]:
    architecture = document.get("architecture")
    if architecture != "amd64" or document.get("os", "linux") != "linux":
        raise Invalid(f"it is an image for {document.get('os')}/{architecture}, not for linux/amd64")
    return [_digest(diff_id) for diff_id in _list(_object(document.get("rootfs")).get("diff_ids"))]


def _blob(files: Files, descriptor: Mapping[str, Any]) -> object:
    digest = _digest(descriptor.get("digest"))
    content = _content(files, _blob_name(digest))
    if hashlib.sha256(content).hexdigest() != digest:
        raise Invalid(f"it is damaged: the blob sha256:{digest} has another digest")
    return _parsed(content)


def _json(files: Files, name: str) -> object:
    return _parsed(_content(files, name))


def _content(files: Files, name: str) -> bytes:
    with files.open(name) as file:
        content = file.read(_MAX_JSON_BYTES + 1)
    if len(content) > _MAX_JSON_BYTES:
        raise Invalid(f"its file {name!r} is too large")
    return content


def _parsed(content: bytes) -> object:
    try:
        return cast(object, json.loads(content))
    except (ValueError, RecursionError) as error:
        raise Invalid("it is damaged: what should be JSON is not", detail=str(error)) from error


def _blob_name(digest: str) -> str:
    return f"blobs/sha256/{digest}"


def _digest(value: object) -> str:
    match = _DIGEST.fullmatch(_text(value))
    if match is None:
        raise Invalid("it is damaged: what should be a sha256 digest is not")
    return match[1]


def _object(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Invalid("it is damaged: an object is missing in its JSON")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise Invalid("it is damaged: a list is missing in its JSON")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Invalid("it is damaged: a text is missing in its JSON")
    return value


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root

    def has(self, name: str) -> bool:
        return (self._root / name).is_file()

    def open(self, name: str) -> BinaryIO:
        """`name` is ours, or made of a digest: it cannot lead out."""
        try:
            handle = os.open(self._root / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise Invalid(f"its file {name} cannot be read: {error.strerror}") from error
        return os.fdopen(handle, "rb")


class _Archive:
    """Names are looked up in the archive's own table, and nowhere else."""

    def __init__(self, file: BinaryIO) -> None:
        self._files: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        self._file = file
        for member in archive.table(file):
            name = posixpath.normpath(member.name)
            if member.isreg() and not member.issparse():
                self._files[name] = member.offset_data, member.size
            elif member.issym():
                # docker saves a layer that occurs twice as a link to its first occurrence.
                self._links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
            if len(self._files) + len(self._links) > _MAX_FILES:
                raise Invalid(f"it has more than {_MAX_FILES} files, so it is no container image")

    def has(self, name: str) -> bool:
        return name in self._files

    def open(self, name: str) -> BinaryIO:
        name = posixpath.normpath(name)
        found = self._files.get(name) or self._files.get(self._links.get(name, ""))
        if found is None:
            raise Invalid(f"its file {name[:200]!r} is missing")
        return cast(BinaryIO, _Part(self._file, *found))


class _Part(io.RawIOBase):
    """A stretch of a file, as a file."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file = file
        self._start = start
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        left = self._size - self._at
        data = os.pread(self._file.fileno(), left if size < 0 else min(size, left), self._start + self._at)
        self._at += len(data)
        return data

    def seek(self, position: int, whence: int = 0, /) -> int:
        """From the start only."""
        self._at = position
        return position
