"""What a container image's configuration means, who its command runs as, and what is put beside it."""

from __future__ import annotations

import io
import shlex
import stat
import tarfile
from pathlib import Path

import pytest

from hatchvm.base.errors import Invalid, Unavailable, Unsupported
from hatchvm.images.importing.archive import Spool, apply
from hatchvm.images.importing.container import Command, Injection, command_of, own_init
from hatchvm.images.importing.pulling import pull
from hatchvm.images.importing.rootfs import Rootfs
from hatchvm.images.importing.streams import Allowance
from hatchvm.images.importing.users import Users
from hatchvm.testing.images.containers import link, member, tar

PASSWD = ["root:x:0:0:root:/root:/bin/bash", "web:x:33:34::/var/www:/bin/false", "broken:line"]
GROUP = ["root:x:0:", "data:x:77:web"]


def tree(folder: Path, *members: tuple[tarfile.TarInfo, bytes]) -> tuple[Rootfs, Spool]:
    folder.mkdir()
    rootfs, spool = Rootfs(), Spool(folder, Allowance(2**30))
    apply(rootfs, io.BytesIO(tar(members)), spool, layer=0, whiteouts=False)
    return rootfs, spool


def injected(folder: Path, tiny: Path, command: Command | None, *members: tuple[tarfile.TarInfo, bytes]) -> Rootfs:
    rootfs, spool = tree(folder / "spool", *members)
    (folder / "scratch").mkdir()
    Injection(rootfs, spool, layer=1, tiny_disk=tiny, scratch=folder / "scratch").add(command)
    return rootfs


def text(rootfs: Rootfs, path: str) -> str:
    found = rootfs.find(path)
    assert found, path
    assert found.content, path
    return found.content.read_text()


@pytest.mark.parametrize(
    ("user", "owner"),
    {
        "": (0, 0, "/root"),
        "web": (33, 34, "/var/www"),
        "33": (33, 34, "/var/www"),
        "web:data": (33, 77, "/var/www"),
        "web:5": (33, 5, "/var/www"),
        "4000": (4000, 0, "/"),
        "4000:77": (4000, 77, "/"),
    }.items(),
)
def test_owners(user: str, owner: tuple[int, int, str]) -> None:
    users = Users(list(PASSWD), GROUP)
    assert users.owner(user) == owner
    assert any(line.split(":")[2:3] == [str(owner[0])] for line in users.passwd)


@pytest.mark.parametrize("user", ["nobody", "web:nobody", "-1", "4294967295", "٣", "a b", ":"])
def test_owners_that_are_none(user: str) -> None:
    if user == ":":
        assert Users(list(PASSWD), GROUP).owner(user)[:2] == (0, 0)
        return
    with pytest.raises(Invalid, match="is not in its /etc/"):
        Users(list(PASSWD), GROUP).owner(user)


def test_the_command_is_entrypoint_and_cmd() -> None:
    assert command_of({"Entrypoint": ["/a"], "Cmd": ["b"], "Env": None}) == Command(
        argv=("/a", "b"), env=(), folder="/", user=""
    )
    assert command_of({}) is None
    for damaged in ({"Cmd": "text"}, {"Cmd": ["a\0b"]}, {"Cmd": ["a"], "User": 5}, {"Cmd": [5]}):
        with pytest.raises(Invalid, match="damaged"):
            command_of(damaged)


def test_who_starts_by_itself(tmp_path: Path) -> None:
    systemd = [member("usr/lib/systemd/systemd", mode=0o755), link("sbin", "usr/sbin")]
    rootfs, _ = tree(
        tmp_path / "spool", *systemd, link("usr/sbin/init", "/lib/systemd/systemd"), link("lib", "usr/lib")
    )
    assert own_init(rootfs, None)
    assert own_init(rootfs, Command(argv=("/sbin/init",), env=(), folder="/", user=""))
    assert own_init(rootfs, Command(argv=("/lib/systemd/systemd",), env=(), folder="/", user=""))
    assert not own_init(rootfs, Command(argv=("/bin/server",), env=(), folder="/", user=""))
    assert not own_init(rootfs, Command(argv=("init",), env=(), folder="/", user=""))
    assert not own_init(Rootfs(), None)


def test_what_is_put_in(tmp_path: Path, tiny_disk: Path) -> None:
    command = Command(
        argv=("/run me", "it's", "$(id)"), env=("A=b c", "no equals sign"), folder="/new folder", user="7:8"
    )
    hostile = [
        link(".hatch", "/etc"),
        link("etc/resolv.conf", "../run/nowhere"),
        member("etc/shells", data=b"/bin/sh\n"),
    ]
    rootfs = injected(tmp_path, tiny_disk, command, *hostile, member("etc/inittab", data=b"::respawn:/old\n"))
    assert rootfs.root.children[".hatch"].is_folder
    assert (init := rootfs.find("/.hatch/bin/init")) is not None
    assert init.mode == stat.S_IFREG | 0o755
    assert b"/.hatch/ld.so\0" in text(rootfs, "/.hatch/bin/dropbear").encode()
    assert "/lib64/ld-linux" in text(rootfs, "/.hatch/lib/libc.so.6")
    assert rootfs.find("/.hatch/ld.so")
    assert text(rootfs, "/usr/lib/sftp-server").startswith("#!/.hatch/bin/sh\n")
    for path in (
        "rc",
        "rc.shutdown",
        "udhcpc.script",
        "cloud-init/configure",
        "cloud-init/run",
        "app",
        "ssh",
        "command",
    ):
        assert text(rootfs, f"/.hatch/{path}").startswith("#!/.hatch/bin/sh\n")
    assert "/etc/udhcpc" not in text(rootfs, "/.hatch/rc")
    assert "#!/bin/sh" not in text(rootfs, "/.hatch/cloud-init/configure").splitlines()
    assert ":/.hatch/bin" in text(rootfs, "/.hatch/cloud-init/run")
    assert "::once:/.hatch/app\n" in text(rootfs, "/etc/inittab")
    assert text(rootfs, "/etc/passwd") == "root:x:0:0:root:/root:/.hatch/bin/sh\nuser7:x:7:0::/:/bin/false\n"
    assert text(rootfs, "/etc/shells") == "/bin/sh\n/.hatch/bin/sh\n"
    assert rootfs.find("/new folder")
    assert rootfs.find("/etc/resolv.conf")
    assert (tmp := rootfs.find("/tmp")) is not None
    assert tmp.mode == stat.S_IFDIR | 0o1777
    shebang_and_folder, _, run = text(rootfs, "/.hatch/command").partition(" && exec ")
    assert shlex.split(shebang_and_folder.splitlines()[1]) == ["cd", "/new folder"]
    words = shlex.split(run)
    assert words[-3:] == ["/run me", "it's", "$(id)"]
    assert {"A=b c", "HOME=/"} <= set(words)
    assert words[words.index("-c") + 1] == "7:8"


def test_without_a_command_there_is_only_ssh(tmp_path: Path, tiny_disk: Path) -> None:
    shell = member("bin/bash", mode=0o755)
    rootfs = injected(tmp_path, tiny_disk, None, shell, member("etc/passwd", data="\n".join(PASSWD).encode()))
    assert "/.hatch/app" not in text(rootfs, "/etc/inittab")
    assert "/.hatch/ssh" in text(rootfs, "/etc/inittab")
    assert rootfs.find("/.hatch/command") is None
    assert text(rootfs, "/etc/passwd").splitlines() == PASSWD
    assert "/bin/bash" in text(rootfs, "/etc/shells").splitlines()


@pytest.mark.parametrize("reference", ["", "-x", "--help", "a b", "a\n", "dir:/etc;", "a@sha256:1", "x" * 600])
def test_what_is_no_reference(reference: str, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="not the name of a container image"):
        pull(reference, tmp_path / "layout")


def test_pulling_without_skopeo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unsupported, match="apt-get install skopeo"):
        pull("docker.io/library/nginx", tmp_path / "layout")


def test_a_pull_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skopeo = tmp_path / "skopeo"
    skopeo.write_text(
        '#!/bin/sh\necho "$@" >"${0%/*}/argv"\necho \'level=fatal msg="Error: no such image"\' >&2\nexit 1\n'
    )
    skopeo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    with pytest.raises(Unavailable, match=r"pulling nginx failed: no such image$"):
        pull("nginx", tmp_path / "layout")
    assert f"docker://nginx oci:{tmp_path}/layout:image" in (tmp_path / "argv").read_text()
