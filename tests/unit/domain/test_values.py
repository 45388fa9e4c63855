"""Values that are compared or kept: stamps, keys, specifications."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
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
    vmm="QEMU",
    vmm_version="7.2.22",
    machine="microvm",
    accel="kvm",
    cpu_model="AMD EPYC 7763",
    cpu_flags="f",
    mem_mib=64,
    vcpu_count=1,
    devices="d",
    kernel_digest="k",
    image_digest="i",
)
#: Field -> what another host has, and the words for it.
DIFFERENCES: Final[dict[str, tuple[Any, str]]] = {
    "format": (1, "another version of Hatch saved it (format 2, this one reads format 1)"),
    "vmm": ("Firecracker", "it was made by QEMU, this host has Firecracker"),
    "vmm_version": ("9.2.0", "it was made by QEMU 7.2.22, this host has 9.2.0"),
    "machine": ("q35", "it was made on a machine of type microvm, VMs here are of type q35"),
    "accel": ("tcg", "it ran under kvm, VMs here run under tcg"),
    "cpu_model": ("Intel Xeon", "it was made on CPU 'AMD EPYC 7763', this host has 'Intel Xeon'"),
    "cpu_flags": ("g", "it was made on CPU 'AMD EPYC 7763' with another set of CPU flags than this host's"),
    "mem_mib": (128, "it has 64 MiB of memory, the VM has 128"),
    "vcpu_count": (2, "it has vcpu_count 1, the VM has 2"),
    "devices": ("e", "it was made with other devices than the VM has here"),
    "kernel_digest": ("l", "it runs another kernel than the VM's image has here"),
    "image_digest": ("j", "it was made from another image than the VM has here"),
}


def specified(new: NewVM, template: Template | None = None) -> VMSpec:
    return specify(with_template(new, template), template, IMAGE, DEFAULTS, host_mem_mib=MAX_MEM_MIB)


@pytest.mark.parametrize("name", [field.name for field in fields(Stamp)])
def test_a_snapshot_says_in_what_another_host_differs(name: str) -> None:
    theirs, words = DIFFERENCES[name]
    assert STAMP.difference(replace(STAMP, **{name: theirs})) == words


def test_the_first_difference_is_the_one_that_explains_the_others() -> None:
    emulated = replace(STAMP, accel="tcg", cpu_model="max", cpu_flags="")
    assert STAMP.difference(emulated) == "it ran under kvm, VMs here run under tcg"


def test_a_stamp_that_was_written_down_is_the_same_again() -> None:
    assert Stamp.of(asdict(STAMP)) == STAMP


def test_a_stamp_of_an_older_version_fits_nowhere_and_one_of_a_newer_version_neither() -> None:
    older = {name: value for name, value in asdict(STAMP).items() if name not in ("format", "kernel_digest")}
    newer = {**asdict(STAMP), "format": 3, "moon": "full"}
    for record in (older, newer):
        assert "another version of Hatch saved it" in str(Stamp.of(record).difference(STAMP))


@pytest.mark.parametrize("wrong", [{"mem_mib": "64"}, {"vmm": None}, {"vcpu_count": True}])
def test_a_stamp_of_the_wrong_types_is_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=next(iter(wrong))):
        Stamp.of({**asdict(STAMP), **wrong})


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
