"""Ceph's object gateway over one monitor and one store in memory, all on loopback: a production S3 server for tests.

Needs the Debian packages `radosgw`, `ceph-mon` and `ceph-osd` (`scripts/test-servers`), no root and no network. What
the configuration says and why: the gateway insists on cephx, so keys are made though nobody else can reach them; one
copy of everything, few placement groups; without `tcp_nodelay` every small answer takes 40 ms.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from hatchvm.testing.s3.server import ACCESS_KEY, SECRET_KEY, S3Server, await_port, daemon, free_port

_PROGRAMS: Final = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
_STEP_S: Final = 90
_CONF: Final = """[global]
fsid = {fsid}
mon host = 127.0.0.1:{mon_port}
public addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = true
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd crush initial weight = 1
osd objectstore = memstore
memstore device bytes = 8G
keyring = {folder}/keyring
mon data = {folder}/mon
osd data = {folder}/osd
run dir = {folder}
admin socket =
pid file =
log file = {folder}/$name.log
mon cluster log file = {folder}/cluster.log
[client.rgw]
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
"""
_CAPS: Final = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *"},
    "client.rgw": {"mon": "allow rw", "osd": "allow rwx"},
}


def missing() -> list[str]:
    """Programs that this host lacks."""
    return [name for name in _PROGRAMS if shutil.which(name) is None]


@contextmanager
def running(folder: Path) -> Iterator[S3Server]:
    """A gateway that keeps its objects in memory. Starting it takes about ten seconds; stopping it is immediate.

    `folder` is made. Raises RuntimeError with what the failing program said.
    """
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir(parents=True)
    port, mon_port, fsid = free_port(), free_port(), str(uuid.uuid4())
    conf = folder / "ceph.conf"
    conf.write_text(_CONF.format(fsid=fsid, mon_port=mon_port, port=port, folder=folder))
    _make_keys(folder)
    log = folder / "output.log"
    with ExitStack() as stack:  # ends them in reverse: the gateway first, the monitor last
        output = stack.enter_context(log.open("wb"))

        def start(*argv: str) -> subprocess.Popen[bytes]:
            return stack.enter_context(daemon([*argv, "-f", "-c", str(conf)], output))

        _run(folder, "monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"v2:127.0.0.1:{mon_port}", "monmap")
        _run(folder, "ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap", "--keyring", "keyring", "-c", conf.name)
        start("ceph-mon", "-i", "a")
        osd_uuid = str(uuid.uuid4())
        _run(folder, "ceph", "-c", conf.name, "osd", "new", osd_uuid, "0")
        _run(folder, "ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", osd_uuid, "-c", conf.name)
        start("ceph-osd", "-i", "0")
        user = ["--uid=tests", "--display-name=tests", f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}"]
        _run(folder, "radosgw-admin", "-c", conf.name, "-n", "client.rgw", "user", "create", *user)
        await_port(port, start("radosgw", "-n", "client.rgw"), log)
        yield S3Server(f"http://127.0.0.1:{port}")


def _make_keys(folder: Path) -> None:
    """One keyring for all: the monitor takes over whatever is in it when it is made."""
    for name, caps in _CAPS.items():
        granted = [word for service, what in caps.items() for word in ("--cap", service, what)]
        create = [] if (folder / "keyring").exists() else ["--create-keyring"]
        _run(folder, "ceph-authtool", "keyring", *create, "--gen-key", "-n", name, *granted)


def _run(folder: Path, *argv: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CEPH_")}
    try:
        done = subprocess.run(
            argv, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=_STEP_S
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{argv[0]} did not end within {_STEP_S} s; logs are in {folder}") from error
    if done.returncode:
        raise RuntimeError(f"{argv[0]} failed: {done.stderr[-2000:]}")
