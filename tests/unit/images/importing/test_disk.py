"""A tree written as ext4, read back with the file system's own tools."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from hatchvm.base.errors import Invalid
from hatchvm.images.importing import disk
from hatchvm.images.importing.archive import Spool, apply
from hatchvm.images.importing.rootfs import Rootfs
from hatchvm.images.importing.streams import Allowance
from hatchvm.testing.images.containers import link, member, tar

AWKWARD = ["<12>", "-f", "...", 'quo"te', "back\\slash", "sp ace", "#x", "!ls", "|", "ü\udcff", "x" * 255, "*", "$(id)"]
LINKS = 200


def debugfs(image: Path, command: str) -> str:
    done = subprocess.run(["/sbin/debugfs", "-R", command, str(image)], capture_output=True, check=True)
    return done.stdout.decode(errors="surrogateescape")


def stat_of(image: Path, path: str) -> list[str]:
    """Type, mode, user, group, size and links, in that order."""
    words = debugfs(image, f'stat "{path}"').split()
    return [words[words.index(f"{name}:") + 1] for name in ("Type", "Mode", "User", "Group", "Size", "Links")]


def tree(folder: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Rootfs:
    rootfs = Rootfs()
    apply(rootfs, io.BytesIO(tar(members)), Spool(folder, Allowance(2**30)), layer=0, whiteouts=False)
    return rootfs


def write(folder: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    for name in ("spool", "scratch"):
        (folder / name).mkdir(parents=True)
    image = folder / "image"
    disk.make(image, tree(folder / "spool", *members), folder / "scratch")
    checked = subprocess.run(["/sbin/e2fsck", "-fn", str(image)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    return image


def test_every_kind_of_entry(tmp_path: Path) -> None:
    capable = member("capable", data=b"1")
    capable[0].pax_headers = {"SCHILY.xattr.security.capability": "\x01\0\0\x02" + "\0" * 16}
    image = write(
        tmp_path,
        member(".", tarfile.DIRTYPE, mode=0o711, mtime=7),
        member("sub/dir", tarfile.DIRTYPE, mode=0o2770, uid=1, gid=2, mtime=1234567890),
        member("sub/dir/file", data=b"hello", mode=0o4755, uid=70000, gid=80000, mtime=5000000000),
        link("sub/long", "t" * 300),
        link("sub/short", 'a "b" c'),
        member("tty", tarfile.CHRTYPE, mode=0o620, devmajor=5, devminor=1),
        member("loop", tarfile.BLKTYPE, devmajor=7, devminor=3),
        member("pipe", tarfile.FIFOTYPE, mode=0o600),
        member("lost+found", tarfile.DIRTYPE),
        member("empty"),
        capable,
    )
    assert stat_of(image, "/") == ["directory", "0711", "0", "0", "4096", "4"]
    assert stat_of(image, "/sub/dir") == ["directory", "02770", "1", "2", "4096", "2"]
    assert stat_of(image, "/sub/dir/file") == ["regular", "04755", "70000", "80000", "5", "1"]
    assert "mtime: 0x499602d2:" in debugfs(image, "stat /sub/dir")
    assert "mtime: 0x2a05f200:00000001" in debugfs(image, "stat /sub/dir/file")
    assert debugfs(image, "cat /sub/dir/file") == "hello"
    assert stat_of(image, "/sub/long")[4] == "300"
    assert 'Fast link dest: "a "b" c"' in debugfs(image, "stat /sub/short")
    assert "Device major/minor number: 05:01" in debugfs(image, "stat /tty")
    assert stat_of(image, "/loop")[:2] == ["block", "0644"]
    assert stat_of(image, "/pipe")[:2] == ["FIFO", "0600"]
    assert "security.capability (20)" in debugfs(image, "ea_list /capable")


def test_names_that_a_command_line_could_mistake(tmp_path: Path) -> None:
    image = write(
        tmp_path,
        *(member(f"{name}/{name}", data=name.encode(errors="surrogateescape"), uid=9) for name in AWKWARD),
        *(link(f"second-{name}"[:255], f"{name}/{name}", tarfile.LNKTYPE) for name in AWKWARD),
    )
    for name in AWKWARD:
        quoted = name.replace('"', '""').encode(errors="surrogateescape")
        command = b'cat "/' + quoted + b"/" + quoted + b'"'
        content = subprocess.run(["/sbin/debugfs", "-R", command, image], capture_output=True, check=True).stdout
        assert content == name.encode(errors="surrogateescape")
    listed = [line for line in debugfs(image, "ls -p /").split("\n") if line and not line.startswith("/0/")]
    assert len(listed) == 2 * len(AWKWARD) + 3  # with ., .., lost+found


def test_hard_links_share_an_inode_and_make_room_for_their_names(tmp_path: Path) -> None:
    names = [f"links/{number}-{'y' * 100}" for number in range(LINKS)]
    image = write(
        tmp_path, member("hatch"), member("file", data=b"1"), *(link(n, "file", tarfile.LNKTYPE) for n in names)
    )
    assert stat_of(image, "/file")[5] == str(LINKS + 1)
    inodes = {debugfs(image, f"stat {path}").split()[1] for path in ("/file", f"/{names[0]}", f"/{names[-1]}")}
    assert len(inodes) == 1
    assert debugfs(image, "ls -p /").count("/100644/") == 2


def test_too_many_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "_MAX_HARD_LINKS", 2)
    with pytest.raises(Invalid, match="more than 2 hard links"):
        write(tmp_path, member("a"), link("b", "a", tarfile.LNKTYPE), link("c", "a", tarfile.LNKTYPE))


def test_holes_stay_holes_and_equal_trees_give_equal_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "FREE_MIB", 16)
    members = [member("big", data=bytes(2**25) + b"end"), member("small", data=b"x", mtime=9)]
    one, two = write(tmp_path / "1", *members), write(tmp_path / "2", *members)
    assert one.stat().st_blocks * 512 < 2**25
    assert debugfs(one, "cat /big")[-3:] == "end"
    assert one.stat().st_size == two.stat().st_size
    assert subprocess.run(["cmp", one, two], check=False).returncode == 0
