"""From options to fields of a request."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

from cyclopts import Parameter

from hatchvm.base.errors import Invalid
from hatchvm.client.answers import VMDefaults


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """The options that `vm create` and `template create` share."""

    image: str | None = None
    "Image to boot, by id or name."
    vcpus: int | None = None
    "Virtual CPUs."
    mem_mib: int | None = None
    "Memory in MiB."
    boot_args: str | None = None
    "Kernel arguments instead of the image's."
    network: bool | None = None
    "Whether the guest has a network card."
    user_data: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None
    "File with cloud-init user data; - reads standard input."
    idle_timeout: str | None = None
    "Suspend after this long without use, such as 10m; or never."
    metadata: Annotated[list[str] | None, Parameter(negative="")] = None
    "A note as KEY=VALUE; may be repeated."

    def fields(self) -> VMDefaults:
        """What was given, as the API names it. Raises Invalid."""
        fields = given(
            image_id=self.image,
            vcpu_count=self.vcpus,
            mem_mib=self.mem_mib,
            boot_args=self.boot_args,
            enable_network=self.network,
            user_data=None if self.user_data is None else _read(self.user_data),
            idle_timeout=self.idle_timeout,
            metadata=None if self.metadata is None else dict(_pair(text) for text in self.metadata),
        )
        return cast(VMDefaults, fields)


def given(**fields: object) -> dict[str, Any]:
    """The fields that have a value: an option left out must be left out of the request too."""
    return {name: value for name, value in fields.items() if value is not None}


def _read(source: str) -> str:
    try:
        return sys.stdin.read() if source == "-" else Path(source).read_text("utf-8")
    except OSError as error:
        raise Invalid(f"--user-data {source}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Invalid(f"--user-data {source}: is not UTF-8 text") from None


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise Invalid("--metadata must be KEY=VALUE")
    return key, value
