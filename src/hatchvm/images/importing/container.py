"""What turns a container image, or a root file system without an init, into a guest: an init, SSH, cloud-init.

All of it is put under `/.hatch`, with its own shell, tools and libraries, for images that have none; from the built-in
image, so that it behaves as that one does. Outside there are only `/etc/inittab`, folders to mount on, and users.
"""

from __future__ import annotations

import io
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from hatchvm.base.errors import Internal, Invalid
from hatchvm.images import libraries
from hatchvm.images.importing.archive import Spool
from hatchvm.images.importing.rootfs import Node, Rootfs, folder
from hatchvm.images.importing.users import SHELL, Users
from hatchvm.images.tools import run

INIT: Final = "/.hatch/bin/init"
_TOP: Final = ".hatch"
_PROGRAMS: Final = {
    "busybox": "/usr/bin/busybox",
    "dropbear": "/usr/sbin/dropbear",
    "sftp-server": "/usr/lib/sftp-server",
}
#: Where dropbear looks for it.
_SFTP_SERVER: Final = "usr/lib/sftp-server"
_LIBRARIES: Final = "/usr/lib/x86_64-linux-gnu"
#: What dropbear names as its loader, and where ours is: shorter, so it can be written in its place.
_LOADER: Final = f"/lib64/{libraries.LOADER}".encode()
_OUR_LOADER: Final = b"/.hatch/ld.so"
_FOLDERS: Final = {
    **dict.fromkeys(("dev", "mnt", "run", "var/log", "var/lib/cloud", "etc"), 0o755),
    **dict.fromkeys(("proc", "sys"), 0o555),
    **dict.fromkeys(("etc/dropbear", "root", "root/.ssh"), 0o700),
    "tmp": 0o1777,
}
#: script of `tiny` -> where it goes
_SHARED: Final = {
    "rc": "rc",
    "rc.shutdown": "rc.shutdown",
    "udhcpc.script": "udhcpc.script",
    "power-button": "acpi/PWRF/00000080",
    "configure": "cloud-init/configure",
    "run": "cloud-init/run",
    "yaml.awk": "cloud-init/yaml.awk",
}
_OWN: Final = ("ssh", "app")
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MAX_TABLE_BYTES: Final = 1024 * 1024
_NO_LOGIN: Final = ("/nologin", "/false")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What a container image runs."""

    argv: tuple[str, ...]
    env: tuple[str, ...]  # KEY=value
    folder: str
    user: str  # name or uid, `:` and group or gid, or nothing


def command_of(config: Mapping[str, Any]) -> Command | None:
    """From an image's configuration (OCI image specification, config.md); None if it runs nothing. Raises Invalid."""
    argv = (*_texts(config.get("Entrypoint")), *_texts(config.get("Cmd")))
    if not argv:
        return None
    env, where, user = _texts(config.get("Env")), config.get("WorkingDir") or "/", config.get("User") or ""
    if not (isinstance(where, str) and isinstance(user, str)):
        raise Invalid("it is damaged: its WorkingDir or its User is no text")
    if any("\0" in text for text in (*argv, *env, where)):
        raise Invalid("it is damaged: there is a NUL in its command")
    return Command(argv=argv, env=env, folder=where, user=user)


def own_init(rootfs: Rootfs, command: Command | None) -> bool:
    """True if the tree starts by itself: its command is an init, or it has no command and an init is there."""
    path = command.argv[0] if command else "/sbin/init"
    found = rootfs.find(path) if path.startswith("/") else None
    is_init = path.rpartition("/")[2] in ("init", "systemd")
    return is_init and found is not None and found.is_file and bool(found.mode & 0o111)


class Injection:
    """`tiny_disk`: the root disk of the built-in image. `scratch`: an empty folder."""

    def __init__(self, rootfs: Rootfs, spool: Spool, *, layer: int, tiny_disk: Path, scratch: Path) -> None:
        self._rootfs = rootfs
        self._spool = spool
        self._layer = layer
        self._tiny = tiny_disk
        self._scratch = scratch

    def add(self, command: Command | None) -> None:
        """Make the tree a guest that runs `command`. Raises Invalid if its user does not exist."""
        self._rootfs.hide(_TOP, self._layer)
        for path, mode in _FOLDERS.items():
            if (found := self._rootfs.find(path)) is None or not found.is_folder:
                self._rootfs.put(path, folder(mode), self._layer)
        self._add_programs()
        for name, path in _SHARED.items():
            self._file(f"{_TOP}/{path}", _adapted(name), 0o755)
        for name in _OWN:
            self._file(f"{_TOP}/{name}", _own(name), 0o755)
        self._file("etc/inittab", _own("inittab") if command else _own("inittab").replace(b"::once:/.hatch/app\n", b""))
        if self._rootfs.find(_SFTP_SERVER) is None:
            self._file(_SFTP_SERVER, _own("sftp-server"), 0o755)
        self._add_users(command)
        for path, text in (
            ("etc/hosts", "127.0.0.1 localhost\n"),
            ("etc/hostname", "hatch\n"),
            ("etc/resolv.conf", ""),
        ):
            # A link would lead to something that a service of another init makes.
            if self._rootfs.find(path) is None:
                self._file(path, text.encode())

    def _add_programs(self) -> None:
        for name, source in _PROGRAMS.items():
            program = self._from_tiny(source).read_bytes()
            self._file(f"{_TOP}/bin/{name}", program.replace(_LOADER, _OUR_LOADER.ljust(len(_LOADER), b"\0")), 0o755)
        busybox = self._scratch / "busybox"
        busybox.chmod(0o755)
        for applet in run(str(busybox), "--list").split():
            if applet != "busybox":
                link = Node(mode=stat.S_IFLNK | 0o777, target="busybox")
                self._rootfs.put(f"{_TOP}/bin/{applet}", link, self._layer)
        for line in run("debugfs", "-R", f"ls -p {_LIBRARIES}", str(self._tiny)).splitlines():
            fields = line.split("/")
            if len(fields) > 5 and stat.S_ISREG(int(fields[2], 8)):
                where = "ld.so" if fields[5] == libraries.LOADER else f"lib/{fields[5]}"
                self._file(f"{_TOP}/{where}", self._from_tiny(f"{_LIBRARIES}/{fields[5]}").read_bytes(), 0o755)

    def _from_tiny(self, path: str) -> Path:
        copy = self._scratch / path.rpartition("/")[2]
        run("debugfs", "-R", f'dump {path} "{copy}"', str(self._tiny))
        if not copy.is_file() or not copy.stat().st_size:
            raise Internal("the built-in image lacks a file that imported images need", detail=path)
        return copy

    def _add_users(self, command: Command | None) -> None:
        """SSH needs the user root, with a shell that is there and listed; the command needs its own."""
        users = Users(self._lines("etc/passwd"), self._lines("etc/group") or ["root:x:0:"])
        shell = users.shell_of_root()
        if shell.endswith(_NO_LOGIN) or not shell or self._rootfs.find(shell) is None:
            shell = SHELL
            users.give_root(shell)
        if command:
            self._add_command(command, *users.owner(command.user))
        listed = self._lines("etc/shells")
        listed += [path for path in dict.fromkeys((shell, SHELL, "/bin/sh")) if path not in listed]
        for name, lines in (("passwd", users.passwd), ("group", users.group), ("shells", listed)):
            self._file(f"etc/{name}", "".join(f"{line}\n" for line in lines).encode(errors="surrogateescape"))

    def _add_command(self, command: Command, uid: int, gid: int, home: str) -> None:
        if self._rootfs.find(command.folder) is None:
            self._rootfs.put(command.folder, folder(), self._layer)
        given = {name for name, _, _ in (setting.partition("=") for setting in command.env)}
        env = [f"{name}={value}" for name, value in (("PATH", _PATH), ("HOME", home)) if name not in given]
        words = [*env, *(setting for setting in command.env if "=" in setting), *command.argv]
        become = f"start-stop-daemon -S -p /.hatch/none -c {uid}:{gid} -a /.hatch/bin/env --" if uid or gid else "env"
        start = f'exec {become} -i HOSTNAME="$(hostname)" {shlex.join(words)}'
        script = f"#!{SHELL}\ncd {shlex.quote(command.folder)} && {start}\n"
        self._file(f"{_TOP}/command", script.encode(errors="surrogateescape"), 0o755)
        self._file(f"{_TOP}/owner", f"{uid}\n".encode())

    def _file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        content = self._spool.add(io.BytesIO(data), len(data))
        self._rootfs.put(path, Node(mode=stat.S_IFREG | mode, content=content), self._layer)

    def _lines(self, path: str) -> list[str]:
        found = self._rootfs.find(path)
        if found is None or found.content is None or found.content.stat().st_size > _MAX_TABLE_BYTES:
            return []
        return found.content.read_text("utf-8", errors="surrogateescape").splitlines()


def _adapted(name: str) -> bytes:
    """A script of `tiny` with our shell as its interpreter, and our tools before those of the image."""
    text = resources.files("hatchvm.images").joinpath("guest", name).read_text()
    # Scripts of users see the image's own tools first.
    text = text.replace("/usr/bin:/usr/sbin:/bin:/sbin", f"{_PATH}:/.hatch/bin").replace(
        "/etc/udhcpc", "/.hatch/udhcpc"
    )
    first, newline, rest = text.replace("#!/bin/sh", f"#!{SHELL}").partition("\n")
    path = "PATH=/.hatch/bin:$PATH\n" if first.startswith("#!") else ""
    return f"{first}{newline}{path}{rest}".encode()


def _own(name: str) -> bytes:
    return resources.files("hatchvm.images.importing").joinpath("guest", name).read_bytes()


def _texts(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not (isinstance(value, list) and all(isinstance(text, str) for text in value)):
        raise Invalid("it is damaged: its configuration has something else where a list of texts should be")
    return tuple(value)
