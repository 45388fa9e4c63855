"""Trees, and the two ways of writing them: the initrd's cpio and the root disk's ext4."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

from hatchvm.base.errors import Internal, Unavailable, Unsupported
from hatchvm.images import cpio, ext4
from hatchvm.images.tools import run
from hatchvm.images.tree import Tree


def sample() -> Tree:
    tree = Tree()
    tree.folder("tmp", 0o1777)
    tree.program("usr/bin/busybox", b"\x7fELF" * 100)
    tree.file("etc/shadow", b"root:*:\n", 0o600)
    tree.link("bin", "usr/bin")
    tree.device("dev/console", 0o600, 5, 1)
    return tree


#: mode, uid, gid, device, content
Member = tuple[int, int, int, tuple[int, int], bytes]


def read_cpio(data: bytes) -> dict[str, Member]:
    entries: dict[str, Member] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        size, name_size = fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        start = (at + 110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return entries
        entries[name] = (fields[1], fields[2], fields[3], (fields[9], fields[10]), data[start : start + size])
        at = (start + size + 3) // 4 * 4


def test_a_tree_lists_parents_before_children() -> None:
    paths = [entry.path for entry in sample()]
    assert paths == ["bin", "dev", "dev/console", "etc", "etc/shadow", "tmp", "usr", "usr/bin", "usr/bin/busybox"]


def test_a_folder_named_after_its_children_keeps_them() -> None:
    tree = Tree()
    tree.file("root/.ssh/authorized_keys", b"")
    tree.folder("root", 0o700)
    assert next((entry.path, stat.S_IMODE(entry.mode)) for entry in tree) == ("root", 0o700)


def test_cpio_holds_every_entry_owned_by_root() -> None:
    entries = read_cpio(cpio.archive(sample()))
    assert entries["dev/console"] == (stat.S_IFCHR | 0o600, 0, 0, (5, 1), b"")
    assert entries["usr/bin/busybox"] == (stat.S_IFREG | 0o755, 0, 0, (0, 0), b"\x7fELF" * 100)
    assert entries["bin"] == (stat.S_IFLNK | 0o777, 0, 0, (0, 0), b"usr/bin")
    assert entries["tmp"][0] == stat.S_IFDIR | 0o1777
    assert cpio.archive(sample()) == cpio.archive(sample())


def rootfs() -> Tree:
    tree = Tree()
    tree.folder("tmp", 0o1777)
    tree.file("etc/shadow", b"secret\n", 0o600)
    tree.program("usr/bin/tool", bytes(range(256)) * 40)
    for number in range(400):  # more than one block of a folder
        tree.link(f"usr/bin/name-of-a-link-{number}", "/usr/bin/tool")
    return tree


def make(folder: Path, name: str) -> Path:
    (folder / f"{name}.scratch").mkdir()
    disk = folder / name
    ext4.make(disk, rootfs(), size_mib=32, inodes=1024, scratch=folder / f"{name}.scratch")
    return disk


def test_ext4_is_sound_root_owned_and_the_same_every_time(tmp_path: Path) -> None:
    disk = make(tmp_path, "a.img")
    assert disk.read_bytes() == make(tmp_path, "b.img").read_bytes()
    checked = subprocess.run(["/sbin/e2fsck", "-fn", str(disk)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    assert run("debugfs", "-R", "cat /etc/shadow", str(disk)) == "secret\n"
    for path, facts in {"/etc/shadow": "0600", "/tmp": "01777", "/usr/bin/tool": "0755", "/usr": "0755"}.items():
        status = run("debugfs", "-R", f"stat {path}", str(disk)).split()
        assert status[status.index("Mode:") + 1] == facts
        assert status[status.index("User:") + 1] == status[status.index("Group:") + 1] == "0"
    assert 'Fast link dest: "/usr/bin/tool"' in run("debugfs", "-R", "stat /usr/bin/name-of-a-link-399", str(disk))


def test_ext4_says_when_the_tree_does_not_fit(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    tree = Tree()
    tree.file("large", bytes(24 * 1024 * 1024))
    tree.file("larger", bytes([1]) * 12 * 1024 * 1024)
    with pytest.raises(Internal) as raised:
        ext4.make(tmp_path / "disk", tree, size_mib=16, inodes=64, scratch=tmp_path / "scratch")
    assert raised.value.detail


def test_a_missing_program_is_named() -> None:
    with pytest.raises(Unsupported, match="no-such-program-anywhere"):
        run("no-such-program-anywhere")


def test_a_failing_program_leaves_its_words_to_the_operator() -> None:
    with pytest.raises(Unavailable) as raised:
        run("sh", "-c", "echo why >&2; exit 3")
    assert raised.value.detail == "why\n"
