"""Values that are compared or kept: stamps, keys, specifications."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pytest

from hatchvm.base.errors import Invalid
from hatchvm.domain.admission import Defaults, as_copy, specify, with_template
from hatchvm.domain.image import Boot, Image, Template
from hatchvm.domain.key import digest_of, new_secret
from hatchvm.domain.snapshot import Stamp
from hatchvm.domain.vm import MAX_MEM_MIB, MAX_VCPUS, MIN_MEM_MIB, NewVM, VMSpec

NOW: Final = datetime(2026, 3, 6, tzinfo=UTC)
BOOT: Final = Boot(kernel=Path("/k"), initrd=None, rootfs=None, rootfs_format="raw", boot_args="")
IMAGE: Final = Image(id="img-1", name=None, boot=BOOT, digest="d", size_bytes=1, created_at=NOW)
DEFAULTS: Final = Defaults(image="tiny", vcpu_count=1, mem_mib=512, boot_args="quiet")
STAMP: Final = Stamp(
    vmm="qemu", vmm_version="7.2", machine="microvm/tcg/max", mem_mib=64, vcpu_count=1, devices="d", image_digest="i"
)


def specified(new: NewVM, template: Template | None = None) -> VMSpec:
    return specify(with_template(new, template), template, IMAGE, DEFAULTS, host_mem_mib=MAX_MEM_MIB)


@pytest.mark.parametrize("name", [field.name for field in fields(Stamp)])
def test_a_snapshot_says_in_what_another_host_differs(name: str) -> None:
    mine = getattr(STAMP, name)
    theirs: Any = mine + 1 if isinstance(mine, int) else f"{mine}'"
    sentence = STAMP.difference(replace(STAMP, **{name: theirs}))
    assert sentence == f"the snapshot was made with {name.replace('_', ' ')} {mine!r}, this host has {theirs!r}"


def test_a_snapshot_fits_where_all_is_the_same() -> None:
    assert STAMP.difference(replace(STAMP)) is None


def test_a_key_is_long_random_and_kept_as_its_hash() -> None:
    one, other = new_secret(), new_secret()
    assert one != other
    assert one.startswith("hatch_")
    assert len(one) == len("hatch_") + 43
    assert digest_of(one) == digest_of(one) != digest_of(other)
    assert one not in digest_of(one)
    assert digest_of("hatch_") == "72eb26e01c10fddef6e75b2cf8aa7721542cef6188b883adefeb8c15a024f244"


@pytest.mark.parametrize("changes", [{"vcpu_count": MAX_VCPUS}, {"mem_mib": MIN_MEM_MIB}, {"mem_mib": MAX_MEM_MIB}])
def test_the_ends_of_a_range_belong_to_it(changes: dict[str, Any]) -> None:
    spec = specified(NewVM(**changes))
    assert {name: getattr(spec, name) for name in changes} == changes


def test_what_is_said_explicitly_wins_even_if_it_says_no() -> None:
    template = Template(id="tpl-1", name="t", defaults={"enable_network": True, "boot_args": "t"}, created_at=NOW)
    spec = specified(NewVM(enable_network=False, boot_args=""), template)
    assert (spec.enable_network, spec.boot_args, spec.template_id) == (False, "", "tpl-1")


def test_a_templates_unknown_fields_and_its_own_kind_are_ignored() -> None:
    defaults = MappingProxyType({"template_id": "tpl-2", "snapshot_id": "snap-1", "id": "vm-1", "mem_mib": 64})
    template = Template(id="tpl-1", name="t", defaults=defaults, created_at=NOW)
    assert with_template(NewVM(), template) == NewVM(mem_mib=64)


def test_a_specification_does_not_change_with_its_request() -> None:
    metadata = {"a": "b"}
    spec = specified(NewVM(metadata=metadata))
    metadata["a"] = "c"
    assert spec.metadata == {"a": "b"}


def test_a_copy_cannot_say_no_to_what_its_memory_depends_on() -> None:
    with pytest.raises(Invalid, match=r"^enable_network: .*\(True\)"):
        as_copy(NewVM(enable_network=False), {"enable_network": True})
