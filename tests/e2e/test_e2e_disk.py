"""A guest whose memory fits no host any more keeps its data: it boots from its disk, or from an older one."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator

import pytest

from hatchvm.client import ApiError, Client
from hatchvm.testing.guest import Guest, create_guest

pytestmark = [pytest.mark.vm, pytest.mark.xdist_group("vm")]


@pytest.fixture
def copy(guest: Guest, client: Client) -> Iterator[Guest]:
    """A VM of its own: what it had in memory alone will be lost."""
    copy = create_guest(client, guest.daemon, "disk", snapshot_id=guest.sleep()["id"])
    yield copy
    client.delete_vm(copy.id)


def age(guest: Guest, *, vmm_version: str) -> None:
    """As if another QEMU had saved it."""
    marker = json.loads(guest.paths.saved.read_bytes())
    marker["stamp"]["vmm_version"] = vmm_version
    guest.paths.saved.write_text(json.dumps(marker))


def test_what_was_synced_survives_memory_that_does_not_fit(copy: Guest, client: Client) -> None:
    copy.text("/cgi-bin/keep?older")
    older = copy.sleep()
    copy.text("/cgi-bin/keep?newer")
    assert copy.count() < copy.count()
    copy.sleep()
    age(copy, vmm_version="9.2.0")
    with pytest.raises(ApiError, match=r"it was made by QEMU 9\.2\.0, this host has 7.* vm restore --disk ") as refused:
        client.restore_vm(copy.id)
    assert refused.value.status == 409
    assert copy.state() == "snapshotted"

    assert client.restore_vm(copy.id, mode="disk")["state"] == "running"
    assert copy.text("/cgi-bin/kept") == "newer"
    assert copy.count() == 1, "what was in memory alone is not"

    copy.sleep()
    assert client.restore_vm(copy.id, older["id"], mode="disk")["state"] == "running"
    assert copy.text("/cgi-bin/kept") == "older"
    copy.sleep()
    assert client.restore_vm(copy.id)["state"] == "running"
    assert copy.text("/cgi-bin/kept") == "older"


def test_what_waits_to_be_stored_is_told(guest: Guest, client: Client) -> None:
    guest.sleep()
    status = client.status()
    assert (status["status"], status["store"], status["uploads"]) == ("ready", "directory", [])
    assert status["vms"] == {"snapshotted": 1}
    with urllib.request.urlopen(f"{guest.daemon.api}/metrics") as answer:
        text = answer.read().decode()
    assert "\nhatch_uploads_pending 0.0\n" in text
    assert "\nhatch_upload_oldest_pending_seconds 0.0\n" in text
