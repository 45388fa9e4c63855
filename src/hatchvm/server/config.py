"""Configuration: environment variables, or the same names in a file, read once at the start.

The only home of pydantic-settings. A value that does not parse stops the start with a sentence that names its variable.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Interface, ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AliasChoices,
    BeforeValidator,
    Field,
    InstanceOf,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from hatchvm.base import paths
from hatchvm.base.errors import HatchError, Invalid
from hatchvm.base.units import parse_bytes, parse_duration
from hatchvm.edge.http.limits import FRESH_SLOTS
from hatchvm.edge.ssh import allow
from hatchvm.net.bridge.settings import Allow, parse_allow
from hatchvm.net.sessions import TABLE
from hatchvm.vmm.firecracker.uids import RANGE

#: An alias, and what the command line reads.
_OTHER_NAMES = {"HATCH_PROXY_BASE_DOMAIN", "HATCH_URL", "HATCH_API_KEY"}
_DOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
#: Users below are a system's own, and nobody (65534).
_ORDINARY = 65536
#: What the kernel keeps for "no user".
_NO_UID = 2**32 - 1
_SEGMENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,62}")


def _duration(value: object) -> float:
    if isinstance(value, str):
        return parse_duration(value)
    raise ValueError("write it like 30s, 5m or 1h30m")


def _share(value: object) -> float:
    """`off`, `on`, or a share from 0 to 1."""
    text = str(value).strip().lower()
    share = {"off": 0.0, "on": 1.0}.get(text)
    if share is None:
        try:
            share = float(text)
        except ValueError:
            share = -1.0
    if not 0 <= share <= 1:
        raise ValueError("must be off, on, or a share of the requests from 0 to 1, like 0.01")
    return share


def _shares(value: int) -> int:
    """So many that share what one proxy may do at a guest."""
    if not 0 <= value <= FRESH_SLOTS:
        raise ValueError(f"must be from 0 to {FRESH_SLOTS}: so many connections to a guest may be tried at once")
    return value


def _positive(value: float) -> float:
    if value <= 0:
        raise ValueError("must be longer than 0s")
    return value


def _address(value: object) -> tuple[str, int]:
    """`host:port`, `[v6]:port`, `:port` (every interface)."""
    host, colon, port = str(value).rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"{value!r} is not an address; write it like 127.0.0.1:8080")
    return host.removeprefix("[").removesuffix("]") or "0.0.0.0", int(port)


def _name_server(value: object) -> tuple[str, int]:
    """`address`, `address:port`, `[v6]:port`. An address, because a name would need a name server."""
    host, port = str(value), 53
    if not _is_ip(host):
        host, port = _address(value)
    if not _is_ip(host) or ip_address(host).is_unspecified or not port:
        raise ValueError(f"{value!r} is not an IP address; write it like 192.0.2.53 or [2001:db8::53]:5353")
    return host, port


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _domains(value: object) -> tuple[str, ...]:
    names = tuple(part.strip().lower().rstrip(".") for part in str(value).split(",") if part.strip())
    wrong = next((name for name in names if not _DOMAIN.fullmatch(name)), None)
    if wrong is not None or not names:
        raise ValueError(f"{wrong or ''!r} is not a domain name; write one or more, like hatch.example.com")
    return names


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or "@" in parts.netloc:
        raise ValueError("write it like https://s3.example.com or http://127.0.0.1:9000")
    return f"{parts.scheme}://{parts.netloc}"


def _bucket(value: str) -> str:
    if not _BUCKET.fullmatch(value):
        raise ValueError(f"{value!r} is not a bucket's name; those have 3 to 63 of a-z, 0-9, '.' and '-'")
    return value


def _prefix(value: str) -> str:
    """With the slash that goes between it and a key."""
    segments = value.strip("/").split("/")
    if len(segments) > 8 or not all(_SEGMENT.fullmatch(segment) for segment in segments):
        raise ValueError(f"{value!r} cannot begin keys; write it like hatch or hosts/one")
    return "/".join(segments) + "/"


def _allowances(value: object) -> tuple[Allow, ...]:
    try:
        return parse_allow(str(value))
    except Invalid as error:
        raise ValueError(str(error)) from None


def _files(value: object) -> tuple[Path, ...]:
    return tuple(Path(part.strip()) for part in str(value).split(",") if part.strip())


def _programs(value: object) -> tuple[str, ...]:
    return tuple(part for part in str(value).split(":") if part)


def _uids(value: object) -> range:
    """`first-last`, both included."""
    first, _, last = str(value).partition("-")
    if not (_is_number(first) and _is_number(last)) or not _ORDINARY <= int(first) <= int(last) < _NO_UID:
        raise ValueError(f"{value!r} is not a range of users from {_ORDINARY} on; write it like 1900000000-1900099999")
    return range(int(first), int(last) + 1)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _rate(value: object) -> int | None:
    """Bytes a second; None for 0, which is none."""
    try:
        return parse_bytes(str(value)) or None
    except ValueError:
        raise ValueError(f"{value!r} is not a rate; write bytes a second like 10MiB or 1.5GiB, 0 for none") from None


def _interface(value: object) -> IPv4Interface:
    try:
        interface = IPv4Interface(str(value))
    except ValueError:
        raise ValueError(f"{value!r} is not an address with a prefix; write it like 172.16.0.1/24") from None
    network = interface.network
    if not 8 <= network.prefixlen <= 30 or interface.ip in (network.network_address, network.broadcast_address):
        raise ValueError(f"{value} cannot be a bridge's; it needs a prefix of /8 to /30 and a host's address in it")
    return interface


Duration = Annotated[float, BeforeValidator(_duration), AfterValidator(_positive)]
Address = Annotated[tuple[str, int], NoDecode, BeforeValidator(_address)]
NameServer = Annotated[tuple[str, int], NoDecode, BeforeValidator(_name_server)]
Domains = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_domains)]
HTTPURL = Annotated[str, AfterValidator(_http_url)]
Bucket = Annotated[str, AfterValidator(_bucket)]
Prefix = Annotated[str, AfterValidator(_prefix)]
Networks = Annotated[tuple[allow.Network, ...], NoDecode, BeforeValidator(lambda value: allow.parse(str(value)))]
Allowances = Annotated[tuple[Allow, ...], NoDecode, BeforeValidator(_allowances)]
Interface = Annotated[IPv4Interface, BeforeValidator(_interface)]
Programs = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_programs)]
UIDs = Annotated[InstanceOf[range], NoDecode, BeforeValidator(_uids)]
Rate = Annotated[int | None, BeforeValidator(_rate)]
Files = Annotated[tuple[Path, ...], NoDecode, BeforeValidator(_files)]
Port = Annotated[int, Field(ge=1, le=65535)]
Share = Annotated[float, BeforeValidator(_share)]
Workers = Annotated[int, AfterValidator(_shares)]


class Config(BaseSettings):
    """Every variable, its default and its meaning."""

    model_config = SettingsConfigDict(
        env_prefix="HATCH_", extra="ignore", validate_default=False, env_ignore_empty=True
    )

    http_addr: Address = ("127.0.0.1", 8080)
    proxy_addr: Address = ("127.0.0.1", 9090)
    proxy_workers: Workers = 0
    base_domain: Domains = Field(
        ("hatch.local", "hatch.localhost"),
        validation_alias=AliasChoices("HATCH_BASE_DOMAIN", "HATCH_PROXY_BASE_DOMAIN"),
    )
    dns_server: NameServer | None = None
    domain_recheck: Annotated[float, BeforeValidator(_duration)] = 24 * 3600.0
    tls_addr: Address = ("127.0.0.1", 9443)
    tls_cert: Files = ()
    tls_key: Files = ()
    data_dir: Path = Path("data")
    cache_dir: Path = Field(default_factory=paths.cache_dir)
    database_url: str | None = Field(None, validation_alias="DATABASE_URL")
    snapshot_store: Annotated[str, Field(pattern=r"^(directory|none|.*/.*)$")] = "directory"
    lazy_restore: Literal["auto", "never"] = "auto"
    snapshot_keep: Annotated[int, Field(ge=1, le=1000)] = 3
    snapshot_grace: Duration = 6 * 3600.0
    snapshot_key_file: Path | None = None
    vmm: Literal["auto", "qemu", "firecracker"] = "auto"
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    qemu_bin: str | None = None
    firecracker_bin: str = "firecracker"
    firecracker_bins: Programs = ()
    jailer_bin: str | None = None
    jail: Literal["on", "off"] = "on"
    jail_uids: UIDs = RANGE
    huge_pages: Literal["off", "2M"] = "off"
    disk_rate: Rate = None
    net_rate: Rate = None
    network: Literal["auto", "user", "bridge"] = "auto"
    bridge_name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,12}$")] = "fcbr0"
    bridge_cidr: Interface = IPv4Interface("172.16.0.1/24")
    bridge_allow: Allowances = ()
    netns: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = None
    conntrack_path: Path = TABLE
    default_kernel_path: str | None = None
    default_rootfs_path: str | None = None
    default_boot_args: str | None = None
    default_vcpu: Annotated[int, Field(ge=1, le=32)] = 1
    default_mem_mib: Annotated[int, Field(ge=32, le=1024 * 1024)] = 512
    ssh_port_min: Port = 16000
    ssh_port_max: Port = 26000
    ssh_allowed_cidr: Networks = allow.parse("127.0.0.1/32")
    ssh_addr: Address | None = None
    idle_check_interval: Duration = 300.0
    idle_timeout: Duration = 1800.0
    proxy_wake_timeout: Duration = 30.0
    wake_timeout: Duration = 120.0
    stream_idle_timeout: Duration = 900.0
    access_log: Share = 0.0
    auth_verify_url: SecretStr | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] | None = None
    node_id: str = Field(default_factory=socket.gethostname)
    s3_bucket: Bucket | None = None
    s3_endpoint: HTTPURL | None = None
    s3_region: str | None = None
    s3_access_key: str | None = None
    s3_secret_key: SecretStr | None = None
    s3_path_style: Literal["auto", "true", "false"] = "auto"
    s3_prefix: Prefix = ""

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        given = self.model_fields_set
        pointless = sorted(name for name in given if name.startswith("s3_") and name != "s3_bucket")
        if self.s3_bucket is None and pointless:
            raise ValueError(f"HATCH_S3_BUCKET: set it, or unset HATCH_{pointless[0].upper()}, which needs it")
        if self.s3_bucket is not None and "snapshot_store" in given and self.snapshot_store != "none":
            raise ValueError("HATCH_SNAPSHOT_STORE: HATCH_S3_BUCKET is set as well; unset one of the two")
        if (self.s3_access_key is None) != (self.s3_secret_key is None):
            raise ValueError("HATCH_S3_ACCESS_KEY and HATCH_S3_SECRET_KEY: set both or none")
        if len(self.tls_cert) != len(self.tls_key):
            raise ValueError("HATCH_TLS_CERT and HATCH_TLS_KEY: name as many keys as certificates, in the same order")
        if "tls_addr" in given and not self.tls_cert:
            raise ValueError("HATCH_TLS_ADDR: it needs HATCH_TLS_CERT and HATCH_TLS_KEY")
        needless = sorted(given & {"bridge_name", "bridge_cidr", "bridge_allow", "netns"})
        if self.network != "bridge" and needless:
            raise ValueError(f"HATCH_{needless[0].upper()}: it needs HATCH_NETWORK=bridge")
        if trouble := self._vmm_trouble():
            raise ValueError(trouble)
        if self.ssh_port_min > self.ssh_port_max:
            raise ValueError("HATCH_SSH_PORT_MIN is above HATCH_SSH_PORT_MAX")
        return self

    def _vmm_trouble(self) -> str | None:
        if self.vmm == "firecracker":
            if self.network != "bridge":
                return "HATCH_VMM: Firecracker needs HATCH_NETWORK=bridge, which needs root"
            if self.accel == "tcg":
                return "HATCH_ACCEL: Firecracker needs KVM; unset it, or HATCH_VMM"
        given = {name for name in self.model_fields_set if getattr(self, name) != type(self).model_fields[name].default}
        promised = sorted(given & {"huge_pages", "disk_rate", "net_rate"})
        if self.vmm != "firecracker" and promised:
            return f"HATCH_{promised[0].upper()}: only Firecracker can do it; it needs HATCH_VMM=firecracker"
        pointless = sorted(given & {"firecracker_bins", "jailer_bin", "jail", "jail_uids"})
        if self.vmm == "qemu" and pointless:
            return f"HATCH_{pointless[0].upper()}: it is Firecracker's, and HATCH_VMM=qemu is set; unset one of the two"
        return None


def load(env_file: Path | None = None) -> Config:
    """The configuration. Raises Invalid with a sentence that names the variable; a variable of the environment wins."""
    if env_file is not None and not env_file.is_file():
        raise Invalid(f"--env-file: {env_file} is not a file")
    try:
        return Config(_env_file=env_file)  # type: ignore[call-arg]  # a documented parameter pydantic-settings hides
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"--env-file: {env_file} cannot be read as text") from error
    except ValidationError as error:
        first: Any = error.errors(include_url=False, include_context=False)[0]
        sentence = str(first["msg"]).removeprefix("Value error, ")
        raise Invalid(f"{_variable(first['loc'])}: {sentence}" if first["loc"] else sentence) from None


def ignored() -> list[str]:
    """`HATCH_*` variables of the environment that mean nothing to this version: misspelt, or of another one."""
    known = {f"HATCH_{name.upper()}" for name in Config.model_fields} | _OTHER_NAMES
    return sorted(name for name in os.environ if name.startswith("HATCH_") and name not in known)


@contextmanager
def blaming(variables: str) -> Iterator[None]:
    """What fails inside is these variables' fault: the sentence says so."""
    try:
        yield
    except HatchError as error:
        raise type(error)(f"{variables}: {error}", detail=error.detail) from error


def _variable(location: tuple[int | str, ...]) -> str:
    name = str(location[0])
    return name if name.isupper() else f"HATCH_{name.upper()}"
