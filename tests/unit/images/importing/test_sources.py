"""What a file is, told by its content; container images in every packing, damaged ones, ones for other machines."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from hatchvm.base.errors import Exhausted, Invalid
from hatchvm.images.importing import oci
from hatchvm.images.importing.archive import Spool
from hatchvm.images.importing.rootfs import Rootfs
from hatchvm.images.importing.sources import recognise
from hatchvm.images.importing.streams import Allowance, Unpacked
from hatchvm.testing.images.containers import docker_archive, folder_tar, link, member, oci_layout, tar

LAYERS = [tar([member("a", data=b"1"), member("b")]), tar([member(".wh.b"), member("c", data=b"3")])]
PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "several gzip members": lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]),
    "zstd": zstandard.compress,
    "xz": lzma.compress,
    "several xz streams": lambda data: lzma.compress(data[:700]) + bytes(8) + lzma.compress(data[700:]),
    "bzip2": bz2.compress,
}


def unpacked(path: Path, folder: Path) -> dict[str, bytes]:
    """The files in the root of a container image."""
    folder.mkdir()
    rootfs = Rootfs()
    with oci.opened(path) as files:
        container = oci.read(files)
        list(oci.unpack(files, container, rootfs, Spool(folder, Allowance(2**20)), Allowance(2**20)))
    return {name: node.content.read_bytes() for name, node in rootfs.root.children.items() if node.content}


@pytest.mark.parametrize("packing", PACKINGS)
def test_packings(packing: str, tmp_path: Path) -> None:
    data = tar([member("usr/x", data=os.urandom(3000))])
    file = tmp_path / "anything.iso"
    file.write_bytes(PACKINGS[packing](data))
    source = recognise(file)
    assert (source.kind, source.packed) == ("rootfs", packing != "plain")
    with file.open("rb") as opened:
        reader = Unpacked(opened, Allowance(len(data)))
        reader.drain()
        assert reader.sha256 == hashlib.sha256(data).hexdigest()
        assert reader.packed_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    with file.open("rb") as opened, pytest.raises(Invalid, match="--max-size"):
        Unpacked(opened, Allowance(len(data) - 1)).drain()
    with file.open("rb") as opened, pytest.raises(Exhausted, match="not enough room"):
        Unpacked(opened, Allowance(len(data), room=len(data) - 1)).drain()


@pytest.mark.parametrize("packing", [packing for packing in PACKINGS if packing not in ("plain", "zstd")])
def test_damaged_packings(packing: str) -> None:
    whole = PACKINGS[packing](os.urandom(3000))
    for damaged in (whole[:-20], whole[:50] + b"\xff\x00\xff" + whole[53:]):
        with pytest.raises(Invalid, match="damaged"):
            Unpacked(io.BytesIO(damaged), Allowance(2**20)).drain()


def test_a_dictionary_of_gigabytes_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**20}]
    bomb = bytearray(lzma.compress(b"x", filters=filters, check=lzma.CHECK_NONE))
    at = bomb.index(b"\x21\x01") + 2
    bomb[at] = 40  # 4 GiB
    header = bytes(bomb[12 : 12 + (bomb[12] + 1) * 4 - 4])
    bomb[12 + len(header) : 16 + len(header)] = zlib.crc32(header).to_bytes(4, "little")
    with pytest.raises(Invalid, match="damaged"):
        Unpacked(io.BytesIO(bytes(bomb)), Allowance(2**20)).drain()


@pytest.mark.parametrize(
    ("kind", "content"),
    {
        "qcow2": ("disk", b"QFI\xfb" + bytes(2000)),
        "boot sector": ("disk", bytes(510) + b"\x55\xaa" + bytes(1500)),
        "ext4": ("disk", bytes(0x438) + b"\x53\xef" + bytes(1000)),
        "docker": ("container", docker_archive(LAYERS)),
        "OCI with a dot": ("container", tar([member("./", tarfile.DIRTYPE), member("./index.json", data=b"{}")])),
        "empty": ("rootfs", tar([])),
        "names like an image's": ("rootfs", tar([member("blobs/readme")])),
    }.values(),
)
def test_kinds(kind: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    assert recognise(tmp_path / "x").kind == kind


def test_what_is_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "noise").write_bytes(b"\x01" * 5000)
    (tmp_path / "short").write_bytes(b"\x1f\x8b")
    for name, reason in {
        "fifo": "not a regular file",
        "noise": "is neither a container image",
        "short": "is neither a container image",
        "missing": "No such file",
        ".": "no OCI image layout",
    }.items():
        with pytest.raises(Invalid, match=reason):
            recognise(tmp_path / name)


def test_an_image_in_every_form_is_the_same(tmp_path: Path) -> None:
    layout = oci_layout(tmp_path / "layout", LAYERS)
    (tmp_path / "oci.tar").write_bytes(folder_tar(layout))
    (tmp_path / "docker.tar").write_bytes(docker_archive(LAYERS))
    for name in ("layout", "oci.tar", "docker.tar"):
        assert recognise(tmp_path / name).kind == "container"
        assert unpacked(tmp_path / name, tmp_path / f"{name} unpacked") == {"a": b"1", "c": b"3"}


def test_a_layer_that_occurs_twice(tmp_path: Path) -> None:
    (tmp_path / "docker.tar").write_bytes(docker_archive([LAYERS[0], LAYERS[1], LAYERS[0]]))
    assert unpacked(tmp_path / "docker.tar", tmp_path / "files") == {"a": b"1", "b": b"", "c": b"3"}


def test_what_does_not_match_its_digest_is_refused(tmp_path: Path) -> None:
    whole = oci_layout(tmp_path / "whole", LAYERS)
    unused = 2  # manifest and configuration for the other architecture
    refused = 0
    for number, blob in enumerate(sorted((whole / "blobs/sha256").iterdir())):
        layout = oci_layout(tmp_path / str(number), LAYERS)
        # A space more leaves JSON as it was; a gzip file may be followed by a zero byte.
        more = b" " if blob.read_bytes().startswith(b"{") else b"\0"
        (layout / "blobs/sha256" / blob.name).write_bytes(blob.read_bytes() + more)
        try:
            unpacked(layout, tmp_path / f"{number} files")
        except Invalid as error:
            assert "digest" in error.message
            refused += 1
    assert refused == len(list((whole / "blobs/sha256").iterdir())) - unused


def test_a_layer_of_docker_must_be_the_one_that_the_configuration_names(tmp_path: Path) -> None:
    archive = docker_archive(LAYERS).replace(LAYERS[1], tar([member(".wh.b"), member("c", data=b"4")]))
    (tmp_path / "docker.tar").write_bytes(archive)
    with pytest.raises(Invalid, match="layer 2 is damaged"):
        unpacked(tmp_path / "docker.tar", tmp_path / "files")


@pytest.mark.parametrize(
    ("reason", "index"),
    [
        ("no image for linux/amd64", {"manifests": []}),
        ("a list is missing", {"manifests": {}}),
        ("an object is missing", []),
        ("no image for linux/amd64", {"manifests": [{"platform": {"os": "linux", "architecture": "arm64"}}]}),
        ("not", {"manifests": [{"digest": "sha256:../../../etc/passwd"}]}),
        ("cannot be read", {"manifests": [{"digest": "sha256:" + "0" * 64}]}),
        ("holds 2 images", {"manifests": [{"digest": "sha256:" + "0" * 64}, {"digest": "sha256:" + "1" * 64}]}),
    ],
)
def test_an_index_that_leads_nowhere(reason: str, index: object, tmp_path: Path) -> None:
    layout = oci_layout(tmp_path / "layout", LAYERS)
    (layout / "index.json").write_text(json.dumps(index))
    with pytest.raises(Invalid, match=reason):
        unpacked(layout, tmp_path / "files")


def test_indexes_within_one_another_end(tmp_path: Path) -> None:
    layout = oci_layout(tmp_path / "layout", LAYERS)
    inner = (layout / "index.json").read_bytes()
    for _ in range(5):
        digest = hashlib.sha256(inner).hexdigest()
        (layout / "blobs/sha256" / digest).write_bytes(inner)
        inner = json.dumps({"manifests": [{"digest": f"sha256:{digest}"}]}).encode()
    (layout / "index.json").write_bytes(inner)
    with pytest.raises(Invalid, match="too many indexes"):
        unpacked(layout, tmp_path / "files")


def test_a_blob_that_is_a_link_out_is_not_followed(tmp_path: Path) -> None:
    layout = oci_layout(tmp_path / "layout", LAYERS)
    for blob in (layout / "blobs/sha256").iterdir():
        blob.rename(tmp_path / blob.name)
        blob.symlink_to(tmp_path / blob.name)
    with pytest.raises(Invalid, match="cannot be read"):
        unpacked(layout, tmp_path / "files")


def test_an_archive_of_links_leads_nowhere(tmp_path: Path) -> None:
    images = [{"Config": "config", "Layers": []}]
    members = [member("manifest.json", data=json.dumps(images).encode()), link("config", "../../../etc/passwd")]
    (tmp_path / "docker.tar").write_bytes(tar(members))
    with pytest.raises(Invalid, match="missing"):
        unpacked(tmp_path / "docker.tar", tmp_path / "files")
