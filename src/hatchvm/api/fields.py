"""The types of request fields: what a value must look like, and the sentence when it does not.

Everything a client sends is bounded here, so that nothing behind the API meets a control character in a boot line, a
string that a database cannot hold, or a number out of range.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from hatchvm.base.units import parse_duration
from hatchvm.domain.custom_domain import MAX_LENGTH
from hatchvm.domain.lease import MAX_REASON, MAX_TTL_S, MIN_TTL_S
from hatchvm.domain.vm import MAX_MEM_MIB, MAX_VCPUS, MIN_MEM_MIB, NEVER

MAX_USER_DATA_BYTES: Final = 512 * 1024
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class Body(BaseModel):
    """A request body: no coercion, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    def given(self) -> dict[str, Any]:
        """The fields the client sent; what it left out is not there."""
        return self.model_dump(exclude_unset=True)


def optional() -> Any:
    """A field that may be left out but, unlike `X | None`, not be null. Read such fields through `Body.given`."""
    return Field(default=None, json_schema_extra=_drop_default)


def _drop_default(schema: dict[str, Any]) -> None:
    del schema["default"]


def is_label(text: str) -> bool:
    """True for 1 to 63 of a-z, 0-9 and inner dashes: a name of ours, and every id."""
    return _LABEL.fullmatch(text) is not None


def _label(text: str) -> str:
    if not is_label(text):
        raise ValueError("must have a-z, 0-9 and '-' only, and start and end with a letter or a digit")
    return text


def _printable(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError("must not contain control characters")
    return text


def _user_data(text: str) -> str:
    if len(text.encode()) > MAX_USER_DATA_BYTES:
        raise ValueError("must have at most 512 KiB")
    if "\0" in text:
        raise ValueError("must not contain a NUL character")
    return text


def _absolute(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError("must be an absolute path")
    return text


def _unicast_ip(text: str) -> str:
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        raise ValueError("must be an IPv4 address such as 172.16.0.10") from None
    if address.is_multicast or address.is_unspecified or address.is_reserved or address.is_loopback:
        raise ValueError("must be an address that a single guest can have")
    return str(address)


def _unicast_mac(text: str) -> str:
    mac = text.lower()
    if not _MAC.fullmatch(mac):
        raise ValueError("must be a MAC address such as 06:00:ac:10:00:0a")
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise ValueError("must be a unicast MAC address")
    return mac


def _idle_timeout(text: str) -> str:
    if text != NEVER:
        try:
            parse_duration(text)
        except ValueError:
            raise ValueError(f'must be a duration such as 30s, 5m or 1h30m, or "{NEVER}"') from None
    return text


def _duration(text: str) -> str:
    try:
        parse_duration(text)
    except ValueError:
        raise ValueError("must be a duration such as 30s, 5m or 1h30m") from None
    return text


def _ttl(text: str) -> str:
    if not MIN_TTL_S <= parse_duration(_duration(text)) <= MAX_TTL_S:
        raise ValueError("must be from 1s to 720h, which is 30 days")
    return text


def _visible(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must have printable characters only")
    return text


Name = Annotated[str, Field(min_length=1, max_length=63), AfterValidator(_label)]
#: An id or a name of an existing thing: any other text means a thing that does not exist.
Reference = Annotated[str, Field(max_length=256)]
VCPUs = Annotated[int, Field(ge=1, le=MAX_VCPUS)]
MemMiB = Annotated[int, Field(ge=MIN_MEM_MIB, le=MAX_MEM_MIB)]
BootArgs = Annotated[str, Field(max_length=2048), AfterValidator(_printable)]
UserData = Annotated[str, Field(max_length=MAX_USER_DATA_BYTES), AfterValidator(_user_data)]
GuestIP = Annotated[str, Field(max_length=15), AfterValidator(_unicast_ip)]
GuestMAC = Annotated[str, Field(max_length=17), AfterValidator(_unicast_mac)]
IdleTimeout = Annotated[str, Field(max_length=64), AfterValidator(_idle_timeout)]
Duration = Annotated[str, Field(max_length=64), AfterValidator(_duration)]
TTL = Annotated[str, Field(max_length=64), AfterValidator(_ttl)]
Reason = Annotated[str, Field(min_length=1, max_length=MAX_REASON), AfterValidator(_visible)]
_Key = Annotated[str, Field(min_length=1, max_length=63), AfterValidator(_printable)]
_Value = Annotated[str, Field(max_length=255), AfterValidator(_printable)]
Metadata = Annotated[dict[_Key, _Value], Field(max_length=64)]
Port = Annotated[int, Field(ge=1, le=65535)]
#: Its characters are checked by `domain.route.check_subdomain`, which has the sentences users know.
Subdomain = Annotated[str, Field(max_length=63)]
#: Its characters are checked by `domain.custom_domain.check_domain`.
Domain = Annotated[str, Field(min_length=1, max_length=MAX_LENGTH)]
#: Read by `domain.public_key.parse`, whose sentences never repeat it: it may be a private key.
PublicKey = Annotated[str, Field(max_length=16384)]
HostPath = Annotated[str, Field(max_length=4096), AfterValidator(_printable), AfterValidator(_absolute)]
