"""Layers over layers, against a model that knows only paths: first what a layer hides goes, then what it has comes."""

from __future__ import annotations

import io
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hatchvm.base.errors import Invalid
from hatchvm.images.importing.archive import Spool, apply
from hatchvm.images.importing.rootfs import Node, Rootfs
from hatchvm.images.importing.streams import Allowance
from hatchvm.testing.images.containers import link, member, tar

Op = tuple[str, str, str]  # what, path, content or target

names = st.sampled_from(["a", "b", "c"])
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
changes = st.tuples(st.sampled_from(["file", "folder", "hide", "opaque"]), paths, st.sampled_from(["1", "2"]))
links = st.tuples(st.just("link"), paths, paths)
#: Whether a link finds what its own layer hides depends on their order, which no image should depend on.
layers = st.lists(
    st.one_of(
        st.lists(changes, max_size=6),
        st.lists(changes.filter(lambda op: op[0] in ("file", "folder")) | links, max_size=6),
    ),
    max_size=4,
)


@dataclass
class Model:
    """Path -> a folder's mode, or a file as a list of its content: the same list is the same inode."""

    entries: dict[str, int | list[str]] = field(default_factory=dict)

    def apply(self, ops: list[Op]) -> None:
        for what, path, _ in ops:
            if what in ("hide", "opaque"):
                self._remove(path, itself=what == "hide")
        for what, path, content in ops:
            if what == "file":
                self._put(path, [content])
            elif what == "folder":
                self._put(path, 0o700 if content == "1" else 0o711)
            elif what == "link":
                target = self.entries.get(content)
                if not isinstance(target, list):
                    raise Invalid("no such target")
                self._put(path, target)

    def _put(self, path: str, entry: int | list[str]) -> None:
        parent = path.rpartition("/")[0]
        if parent and not isinstance(self.entries.get(parent), int):
            self._put(parent, 0o755)
        if not (isinstance(entry, int) and isinstance(self.entries.get(path), int)):
            self._remove(path, itself=True)
        self.entries[path] = entry

    def _remove(self, path: str, *, itself: bool) -> None:
        if itself:
            self.entries.pop(path, None)
        for other in [other for other in self.entries if other.startswith(f"{path}/")]:
            del self.entries[other]


def layer_tar(ops: list[Op]) -> bytes:
    members = []
    for what, path, content in ops:
        folder, _, name = path.rpartition("/")
        if what == "file":
            members.append(member(path, data=content.encode()))
        elif what == "folder":
            members.append(member(path, tarfile.DIRTYPE, mode=0o700 if content == "1" else 0o711))
        elif what == "hide":
            members.append(member(f"{folder}/.wh.{name}" if folder else f".wh.{name}"))
        elif what == "opaque":
            members.append(member(f"{path}/.wh..wh..opq"))
        else:
            members.append(link(path, content, tarfile.LNKTYPE))
    return tar(members)


def applied(*archives: bytes, whiteouts: bool = True, max_bytes: int = 2**30) -> Rootfs:
    rootfs = Rootfs()
    with tempfile.TemporaryDirectory() as folder:
        spool = Spool(Path(folder), Allowance(max_bytes))
        for number, archive in enumerate(archives):
            apply(rootfs, io.BytesIO(archive), spool, layer=number, whiteouts=whiteouts)
        for node in flat(rootfs).values():
            if node.content:
                node.target = node.content.read_text()  # the folder goes
    return rootfs


def flat(rootfs: Rootfs) -> dict[str, Node]:
    found: dict[str, Node] = {}
    waiting = [("", rootfs.root)]
    while waiting:
        prefix, node = waiting.pop()
        for name, child in node.children.items():
            found[f"{prefix}{name}"] = child
            waiting.append((f"{prefix}{name}/", child))
    return found


def comparable(entries: dict[str, int | list[str]]) -> dict[str, object]:
    """Files also by the set of names that share their inode."""
    return {
        path: entry if isinstance(entry, int) else (*entry, sorted(p for p, other in entries.items() if other is entry))
        for path, entry in entries.items()
    }


@settings(deadline=None)  # it writes files
@given(layers)
def test_layers_come_out_as_the_model_says(layers: list[list[Op]]) -> None:
    model = Model()
    try:
        for ops in layers:
            model.apply(ops)
    except Invalid:
        with pytest.raises(Invalid, match="leads to nothing"):
            applied(*map(layer_tar, layers))
        return
    inodes: dict[Node, list[str]] = {}
    entries: dict[str, int | list[str]] = {
        path: node.mode & 0o7777 if node.is_folder else inodes.setdefault(node, [node.target])
        for path, node in flat(applied(*map(layer_tar, layers))).items()
    }
    assert comparable(entries) == comparable(model.entries)


def test_links_are_followed_inside_the_tree_only() -> None:
    rootfs = applied(
        tar(
            [
                member("usr/lib", tarfile.DIRTYPE),
                link("lib", "usr/lib"),
                link("up", "../../../usr"),
                link("abs", "/usr"),
            ]
        ),
        tar(
            [member("lib/x", data=b"1"), member("up/y", data=b"2"), member("abs/z", data=b"3"), member("/w", data=b"4")]
        ),
    )
    assert {path for path, node in flat(rootfs).items() if node.is_file} == {"usr/lib/x", "usr/y", "usr/z", "w"}


def test_the_last_of_two_entries_counts_and_a_link_is_replaced_not_followed() -> None:
    rootfs = applied(
        tar([link("f", "/etc/passwd"), member("f", data=b"1"), member("f", data=b"2"), member("etc/passwd", data=b"3")])
    )
    assert {path: node.target for path, node in flat(rootfs).items() if node.is_file} == {"f": "2", "etc/passwd": "3"}


def test_without_layers_a_whiteout_is_a_file() -> None:
    assert ".wh.a" in flat(applied(tar([member("a"), member(".wh.a")]), whiteouts=False))


def test_metadata_survives() -> None:
    capability = "\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    special = member("s", mode=0o4755, uid=70000, gid=5, mtime=1234567890.5)
    special[0].pax_headers = {"SCHILY.xattr.security.capability": capability}
    nodes = flat(
        applied(tar([special, member("d", tarfile.CHRTYPE, devmajor=5, devminor=1), member("p", tarfile.FIFOTYPE)]))
    )
    one = nodes["s"]
    assert (one.mode, one.uid, one.gid, one.mtime) == (0o104755, 70000, 5, 1234567890)
    assert one.capability == capability.encode()
    assert nodes["d"].device == (5, 1)


def header(**fields: Any) -> bytes:
    """One raw header; `fields` go past TarInfo's own checks."""
    info, _ = member("x", **fields)
    return info.tobuf(format=tarfile.GNU_FORMAT)


HOSTILE = {
    "leads out": ("leads out of its folder", tar([member("a/../../etc/passwd")])),
    "link from outside": ("leads out of its folder", tar([link("a", "../../etc/passwd", tarfile.LNKTYPE)])),
    "link to nothing": ("leads to nothing", tar([link("a", "/etc/passwd", tarfile.LNKTYPE)])),
    "link to itself": ("leads to nothing", tar([link("a", "a", tarfile.LNKTYPE)])),
    "link to a folder": ("leads to nothing", tar([member("d", tarfile.DIRTYPE), link("a", "d", tarfile.LNKTYPE)])),
    "links in a circle": ("in a circle", tar([link("a", "b"), link("b", "a"), member("a/x")])),
    "link with a line break": ("line break", tar([link("a", "b\nmknod x b 8 0")])),
    "link to the empty path": ("empty or too long", tar([link("a", "")])),
    "name with a line break": ("line break", tar([member("a\nrm x")])),
    "name with a carriage return": ("line break", tar([member("a\rrm x")])),
    "long name": ("more than 255 bytes", tar([member("ü" * 128)])),
    "deep": ("folders within one another", tar([member("d/" * 300 + "x")])),
    "root is a file": ("not a folder", tar([member(".")])),
    "whiteout of the folder itself": ("names no file", tar([member("a/.wh..")])),
    "whiteout of its parent": ("names no file", tar([member("a/.wh...")])),
    "owner": ("impossible owner", tar([member("a", uid=2**33)])),
    "device": ("impossible numbers", header(type=tarfile.BLKTYPE, devmajor=8, devminor=-1) + bytes(1024)),
    "unknown type": ("unknown type", header(type=b"Z") + bytes(1024)),
    "time that is none": ("damaged", tar([member("a", mtime=0)]).replace(b"00000000000\0", b"\xff" * 12)),
    "capabilities": (
        "impossible capabilities",
        tar([member("a", pax_headers={"SCHILY.xattr.security.capability": "x" * 65})]),
    ),
    "cut short": ("damaged|cut short", tar([member("a", data=bytes(range(256)) * 8)])[:1500]),
    "damaged header": ("a header cannot be read", tar([member("a"), member("b")]).replace(b"b\0\0\0", b"c\0\0\0")),
    "no tar archive": ("a header cannot be read", b"hello" * 1000),
    "a long name without end": ("do not end", header(type=tarfile.GNUTYPE_LONGNAME, size=2**40) + bytes(2**21)),
    "headers for headers": ("damaged", tar([member("a", tarfile.XHDTYPE)])[:512] * 2000),
    "more than there is": ("more than 1.0 MiB", header(size=2**62) + bytes(1024)),
    "many bytes": ("more than 1.0 MiB", tar([member("a", data=bytes(2**20 + 1))])),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_with_a_reason(case: str) -> None:
    reason, archive = HOSTILE[case]
    with pytest.raises(Invalid, match=reason):
        applied(archive, max_bytes=2**20)


def test_there_is_a_limit_on_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hatchvm.images.importing.rootfs.MAX_IN_FOLDER", 10)
    applied(tar(member(str(number)) for number in range(10)))
    with pytest.raises(Invalid, match="entries in one folder"):
        applied(tar(member(str(number)) for number in range(11)))
    monkeypatch.setattr("hatchvm.images.importing.rootfs.MAX_ENTRIES", 20)
    with pytest.raises(Invalid, match="more than 20 entries"):
        applied(tar(member(f"{number % 7}/{number}") for number in range(20)))
