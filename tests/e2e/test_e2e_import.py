"""Images of strangers, imported with the command and booted: a container's command answers, a cloud image too."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from hatchvm.cli.child import ChildDaemon
from hatchvm.images import cpio
from hatchvm.images.tree import Tree
from hatchvm.testing.guest import MEM_MIB, Guest, create_guest, user_data, wait_for
from hatchvm.testing.images import containers, disks, registry
from hatchvm.testing.images.containers import link, member, tar
from hatchvm.testing.ssh import ssh

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("vm")]

ENTRYPOINT = b"""#!/bin/busybox sh
echo "runs as $(busybox id -u):$(busybox id -g) in $(busybox pwd)" >/dev/stdout
echo "$GREETING" >/www/index.html
exec busybox httpd -f -p 8080 -h /www
"""
GREETING = "hello from 'a' \"container\""
SETTINGS: dict[str, object] = {
    "Entrypoint": ["/serve"],
    "Env": ["PATH=/bin", f"GREETING={GREETING}"],
    "User": "web",
    "WorkingDir": "/www/made",
}


@pytest.fixture(scope="session")
def tiny(daemon: ChildDaemon) -> Path:
    """The folder of the built-in image's files."""
    done = hatchvm(daemon, "image", "build", "tiny")
    return Path(done["kernel_path"]).parent


@pytest.fixture(scope="session")
def layers(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """A system of busybox alone; the second layer takes something away and adds the command."""
    busybox = tmp_path_factory.mktemp("busybox") / "busybox"
    dump = ["/sbin/debugfs", "-R", f"dump /usr/bin/busybox {busybox}", str(tiny / "rootfs.img")]
    subprocess.run(dump, check=True, capture_output=True)
    passwd = b"root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001::/www:/bin/false\n"
    system = [
        member("bin/busybox", data=busybox.read_bytes(), mode=0o755),
        link("bin/sh", "busybox"),
        member("etc/passwd", data=passwd),
        member("www", tarfile.DIRTYPE, uid=1000, gid=1001),
        member("www/old.html", data=b"old"),
    ]
    return [tar(system), tar([member("www/.wh.old.html"), member("serve", data=ENTRYPOINT, mode=0o755)])]


def hatchvm(daemon: ChildDaemon, *argv: str) -> Any:
    """What the command prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", "from hatchvm.cli.main import main; main()", "--json", "--url", daemon.api, *argv],
        env={**os.environ, "HATCH_API_KEY": daemon.paths.api_key.read_text()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextmanager
def booted(daemon: ChildDaemon, image: str, name: str, **fields: Any) -> Iterator[Guest]:
    """A VM from the image; both are gone afterwards."""
    with daemon.client() as client:
        guest = create_guest(client, daemon, name, image_id=image, mem_mib=MEM_MIB, **fields)
        try:
            yield guest
        finally:
            client.delete_vm(guest.id)
            client.delete_image(image)


def test_a_container_image_runs_its_command(
    daemon: ChildDaemon, ssh_key: Path, layers: list[bytes], tmp_path: Path
) -> None:
    archive = tmp_path / "saved"
    archive.write_bytes(containers.docker_archive(layers, **SETTINGS))
    image = hatchvm(daemon, "image", "import", str(archive), "--name", "from-docker")
    public = ssh_key.with_suffix(".pub").read_text().strip()
    data = f"#cloud-config\nssh_authorized_keys: ['{public}']\nruncmd: [echo ran >/root/ran]\n"
    with booted(daemon, image["id"], "container", user_data=data) as guest:
        assert guest.text() == GREETING
        assert guest.ask("/old.html").status == 404
        console = guest.paths.console
        wait_for(lambda: "the script ended with status 0" in console.read_text(), "cloud-init")
        assert "runs as 1000:1001 in /www/made" in console.read_text()
        assert ssh(guest, ssh_key, "cat /root/ran; busybox hostname").stdout == "ran\ncontainer\n"
        guest.sleep()
        assert guest.text() == GREETING


def test_a_container_image_is_pulled_from_a_registry(daemon: ChildDaemon, layers: list[bytes], tmp_path: Path) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("no skopeo: apt-get install skopeo")
    with registry.serve(containers.oci_layout(tmp_path / "layout", layers, **SETTINGS)) as port:
        reference = f"127.0.0.1:{port}/some/image:1.0"
        image = hatchvm(daemon, "image", "pull", reference, "--no-tls-verify", "--name", "pulled")
    with booted(daemon, image["id"], "pulled") as guest:
        assert guest.text() == GREETING


def test_a_cloud_image_boots_its_own_kernel(daemon: ChildDaemon, ssh_key: Path, tiny: Path, tmp_path: Path) -> None:
    image = hatchvm(daemon, "image", "import", str(cloud_image(tiny, tmp_path)), "--name", "cloud")
    public = ssh_key.with_suffix(".pub").read_text().strip()
    with booted(daemon, image["id"], "cloud", user_data=user_data(public)) as guest:
        assert guest.text().startswith("hello")
        assert ssh(guest, ssh_key, "grep -c '/dev/vda1 / ' /proc/mounts").stdout == "1\n"


def cloud_image(tiny: Path, folder: Path) -> Path:
    """`tiny` as distributions ship their images: a qcow2 whose partition holds kernel and initrd, in two versions."""
    tree = Tree()
    script = resources.files("hatchvm.images").joinpath("guest", "initrd.sh").read_text()
    tree.program("init", script.replace("-o noatime /dev/vda ", "-o noatime /dev/vda1 ").encode())
    (folder / "initrd").write_bytes((tiny / "initrd").read_bytes() + cpio.archive(tree))
    (folder / "nothing").write_bytes(b"an older kernel")
    shutil.copy(tiny / "rootfs.img", folder / "partition")
    commands = [
        "mkdir boot",
        "cd boot",
        f"write {folder}/initrd initrd.img-6.10.1",
        f"write {tiny}/kernel vmlinuz-6.10.1",
    ]
    commands += [f"write {folder}/nothing vmlinuz-6.9.2", f"write {folder}/nothing initrd.img-6.9.2"]
    (folder / "commands").write_text("\n".join(commands))
    writing = ["/sbin/debugfs", "-w", "-f", str(folder / "commands"), str(folder / "partition")]
    subprocess.run(writing, check=True, capture_output=True)
    size = (folder / "partition").stat().st_size
    head, end, (start,) = disks.gpt([size])
    with (folder / "raw").open("wb") as raw, (folder / "partition").open("rb") as partition:
        raw.write(head)
        raw.seek(start)
        shutil.copyfileobj(partition, raw, 2**20)
        raw.write(end)
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(folder / "raw"), str(folder / "image")]
    subprocess.run(convert, check=True)
    return folder / "image"
