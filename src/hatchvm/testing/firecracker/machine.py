"""What a Firecracker process does with legal calls: opens what it is told of, runs a guest, saves and loads it."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from hatchvm.base import tasks
from hatchvm.base.units import MIB
from hatchvm.testing.firecracker import agent, snapshot
from hatchvm.testing.firecracker.api import NOT_OF_A_BOOT, Phase
from hatchvm.testing.firecracker.card import Card
from hatchvm.testing.firecracker.guest import Guest
from hatchvm.testing.firecracker.memory import PAGE, Memory
from hatchvm.testing.firecracker.record import Record
from hatchvm.testing.firecracker.web import PORT, Web

_DEFAULTS: Final = {
    "vcpu_count": 1,
    "mem_size_mib": 128,
    "smt": False,
    "track_dirty_pages": False,
    "huge_pages": "None",
}
_MAC: Final = re.compile("([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}")
_ELF: Final = b"\x7fELF"
_BZIMAGE_AT, _BZIMAGE = 0x202, b"HdrS"
#: What a snapshot carries of the configuration.
_SAVED: Final[tuple[str, ...]] = ("machine-config", "drives", "network-interfaces", "vsock", "balloon", "entropy")
#: Paths that are opened when they are told.
_OPENED: Final[dict[str, tuple[str, ...]]] = {
    "logger": ("log_path",),
    "metrics": ("metrics_path",),
    "boot-source": ("kernel_image_path", "initrd_path"),
}


class Refused(Exception):
    """Answered with 400. `fatal`: and the process ends."""

    def __init__(self, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.fatal = fatal


class Machine:
    """`ended` is set to an exit code once the guest has shut down."""

    def __init__(self, version: str, vm_id: str, record: Record) -> None:
        self.version = version
        self.phase = Phase.FRESH
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._id = vm_id
        self._record = record
        self._config: dict[str, Any] = {"machine-config": dict(_DEFAULTS), "drives": {}, "network-interfaces": {}}
        self._once: set[str] = set()
        self._disks: dict[str, int] = {}
        self._cards: dict[str, Card] = {}
        self._listener: Any = None
        self._vsock: agent.Vsock | None = None
        self._console = 1
        self._guest: Guest | None = None
        self._shut_down = False
        self._running = asyncio.Event()
        self._servers: list[asyncio.Server] = []

    async def perform(self, called: str, path: str, body: Any, *, full: bool = False) -> Any:
        """The answer's body, None for none. `full`: there is no room for a snapshot. Raises Refused."""
        before = self.phase
        answer = await self._perform(called, path, body, full)
        if called.startswith(("PUT", "PATCH")) and before is self.phase is Phase.FRESH and called not in NOT_OF_A_BOOT:
            self.phase = Phase.CONFIGURED
        return answer

    async def _perform(self, called: str, path: str, body: Any, full: bool) -> Any:
        name = path.rpartition("/")[2]
        try:
            match called:
                case "PUT /actions" | "PATCH /vm":
                    await self._act(body.get("action_type") or body["state"])
                case "PUT /snapshot/create":
                    self._create(body, full)
                case "PUT /snapshot/load":
                    await self._load(body)
                case "PUT /drives/{drive_id}":
                    self._add_drive(name, body)
                case "PATCH /drives/{drive_id}":
                    self._change_drive(name, body)
                case "PUT /network-interfaces/{iface_id}":
                    self._add_card(name, body)
                case _ if called.startswith("GET"):
                    return self._tell(called)
                case _:
                    self._configure(called, body)
        except OSError as error:
            raise Refused(f"{called}: {error}") from error
        return None

    def _tell(self, called: str) -> Any:
        config = self._config
        if called == "GET /":
            told = {"id": self._id, "state": self.phase.state, "vmm_version": self.version}
            return told | {"app_name": "Firecracker"}
        if called == "GET /version":
            return {"firecracker_version": self.version}
        if called == "GET /vm/config":
            lists = {kind: list(config[kind].values()) for kind in ("drives", "network-interfaces")}
            return config | lists
        kind = called.removeprefix("GET /").partition("/")[0]
        if kind not in config and kind != "mmds":
            raise Refused(f"there is no {kind}")
        return config.get(kind, {})

    def _configure(self, called: str, body: Any) -> None:
        kind = called.partition(" /")[2].partition("/")[0]
        if called == "PUT /metrics" and "metrics" in self._config:
            raise Refused("metrics are set already")
        if called == "PUT /vsock":
            self._listen(body)
        for field in _OPENED.get(kind, ()):
            if field in body:
                os.close(os.open(body[field], os.O_RDONLY if kind == "boot-source" else os.O_RDWR | os.O_CREAT, 0o644))
        if called.startswith("PATCH"):
            if kind not in self._config:
                raise Refused(f"there is no {kind}")
            body = self._config[kind] | body
        self._config[kind] = _DEFAULTS | body if kind == "machine-config" else body

    def _listen(self, body: Mapping[str, Any]) -> None:
        if self._listener is not None:
            self._listener.close()
            Path(self._config["vsock"]["uds_path"]).unlink()
        self._listener = agent.listen(body["uds_path"])

    def _add_drive(self, name: str, body: dict[str, Any]) -> None:
        drives: dict[str, Any] = self._config["drives"]
        if "path_on_host" not in body:
            raise Refused("a drive needs path_on_host")
        if body["is_root_device"] and any(each["is_root_device"] for key, each in drives.items() if key != name):
            raise Refused("there is a root device already")
        self._open_disk(name, body)
        drives[name] = body

    def _open_disk(self, name: str, drive: Mapping[str, Any]) -> None:
        flags = os.O_RDONLY if drive.get("is_read_only") else os.O_RDWR
        opened = os.open(drive["path_on_host"], flags | os.O_CLOEXEC)
        if name in self._disks:
            os.close(self._disks[name])
        self._disks[name] = opened

    def _change_drive(self, name: str, body: dict[str, Any]) -> None:
        if name not in self._config["drives"]:
            raise Refused(f"there is no drive {name}")
        changed = self._config["drives"][name] | body
        self._open_disk(name, changed)
        self._config["drives"][name] = changed
        if self._guest is not None:
            self._guest.disk = self._first_writable()

    def _first_writable(self) -> int | None:
        drives = self._config["drives"].items()
        return next((self._disks[name] for name, drive in drives if not drive.get("is_read_only")), None)

    def _add_card(self, name: str, body: dict[str, Any]) -> None:
        if not _MAC.fullmatch(body.get("guest_mac", "00:00:00:00:00:00")):
            raise Refused("guest_mac is not a hardware address")
        if name in self._cards:
            self._cards.pop(name).close()
        self._cards[name] = Card(body["host_dev_name"])
        self._config["network-interfaces"][name] = body

    async def _act(self, action: str) -> None:
        match action:
            case "InstanceStart":
                await self._start()
            case "SendCtrlAltDel":
                self._shut_down = True
                self._end_if_asked()
            case "Paused" if self.phase is Phase.RUNNING:
                self._pause()
            case "Resumed" if self.phase is Phase.PAUSED:
                self._resume()

    async def _start(self) -> None:
        boot = self._config.get("boot-source")
        if boot is None:
            raise Refused("there is no kernel")
        self._check_kernel(Path(boot["kernel_image_path"]))
        machine = self._config["machine-config"]
        memory = Memory.anonymous(machine["mem_size_mib"] * MIB, track=machine["track_dirty_pages"])
        guest = self._guest_of(memory)
        await self._bring_up(guest, lambda: guest.boot(boot.get("boot_args", "")))
        self._run(Phase.RUNNING)
        os.write(self._console, b"standin: booted\n")

    def _guest_of(self, memory: Memory) -> Guest:
        reports = self._config.get("balloon", {}).get("free_page_reporting", False)
        return Guest(memory, self._first_writable(), self._violated, reports=reports)

    def _check_kernel(self, path: Path) -> None:
        with path.open("rb") as kernel:
            head = kernel.read(_BZIMAGE_AT + len(_BZIMAGE))
        if not (head.startswith(_ELF) or (self.version != "1.16.1" and head.endswith(_BZIMAGE))):
            raise Refused("the kernel cannot be loaded")

    async def _bring_up(self, guest: Guest, begin: Callable[[], None]) -> None:
        """Its console, network and vsock. What it is told is known once it has begun."""
        if path := self._config.get("serial", {}).get("serial_out_path"):
            self._console = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
        begin()
        self._guest = guest
        if self._cards:
            await self._join(guest)
        if self._listener is not None:
            self._vsock = agent.Vsock(self._listener, guest.told.get("agent") != "no", self._running)
            self._vsock.told = lambda command: self._record.add(agent=command)
            self._servers.append(await self._vsock.serve())

    async def _join(self, guest: Guest) -> None:
        """The first card: the guest serves there as soon as it has an address."""
        name, card = next(iter(self._cards.items()))
        mac = self._config["network-interfaces"][name].get("guest_mac")
        web = Web(guest.request, self._running)
        self._servers.append(await asyncio.start_server(web.connected, sock=card.join(mac, PORT)))
        if "ip" in guest.told:
            card.address(guest.told["ip"], guest.told.get("gw"))
        else:
            tasks.supervise(self._ask(guest, card), name="dhcp")

    async def _ask(self, guest: Guest, card: Card) -> None:
        told = await card.ask()
        await self._running.wait()
        if told:
            guest.remember(**told)
            card.address(told["ip"], told.get("gw"))

    def _run(self, phase: Phase) -> None:
        self.phase = phase
        for card in self._cards.values():
            card.run() if phase is Phase.RUNNING else card.stop()
        self._running.set() if phase is Phase.RUNNING else self._running.clear()

    def _pause(self) -> None:
        self._run(Phase.PAUSED)
        self._alive.pause()

    def _resume(self) -> None:
        self._alive.resume()
        self._run(Phase.RUNNING)
        self._end_if_asked()

    def _end_if_asked(self) -> None:
        if self._shut_down and self.phase is Phase.RUNNING and not self.ended.done():
            os.write(self._console, b"standin: shut down\n")
            self.ended.set_result(0)

    def _create(self, body: Mapping[str, Any], full: bool) -> None:
        guest = self._alive
        for disk in self._disks.values():
            os.fsync(disk)
        if self._vsock is not None:
            self._vsock.reset()
        content = {kind: self._config[kind] for kind in _SAVED if kind in self._config}
        content |= {"guest": guest.state(), "time": _now()}
        snapshot.save(body["snapshot_path"], snapshot.FORMATS[self.version], content)
        diff = body.get("snapshot_type", "Full") == "Diff"
        guest.memory.save(body["mem_file_path"], diff=diff, full_after=4 if full else None)

    async def _load(self, body: Mapping[str, Any]) -> None:
        try:
            await self._restore(body)
        except (OSError, ValueError, KeyError, Refused) as error:
            raise Refused(f"the snapshot could not be loaded: {error}", fatal=True) from error
        self._run(Phase.PAUSED)
        if body.get("resume_vm"):
            self._resume()

    async def _restore(self, body: Mapping[str, Any]) -> None:
        content = snapshot.load(body["snapshot_path"], snapshot.FORMATS[self.version])
        track = body.get("track_dirty_pages", False)
        self._config |= {kind: content[kind] for kind in _SAVED if kind in content}
        self._config["machine-config"] |= {"track_dirty_pages": track}
        self._override(body)
        memory = self._map(body["mem_backend"], track)
        for name, drive in self._config["drives"].items():
            self._open_disk(name, drive)
        for name, card in self._config["network-interfaces"].items():
            self._cards[name] = Card(card["host_dev_name"])
        if "vsock" in self._config:
            self._listener = agent.listen(self._config["vsock"]["uds_path"])
        guest = self._guest_of(memory)
        await self._bring_up(guest, lambda: guest.load(content["guest"]))
        if self._vsock is not None and not body.get("clock_realtime"):
            self._vsock.behind_s = _now() - content["time"]

    def _override(self, body: Mapping[str, Any]) -> None:
        for each in body.get("network_overrides", ()):
            self._config["network-interfaces"][each["iface_id"]]["host_dev_name"] = each["host_dev_name"]
        if "vsock_override" in body:
            self._config["vsock"]["uds_path"] = body["vsock_override"]["uds_path"]

    def _map(self, backend: Mapping[str, str], track: bool) -> Memory:
        machine = self._config["machine-config"]
        if backend["backend_type"] == "Uffd":
            page_size = 2 * MIB if machine["huge_pages"] == "2M" else PAGE
            size = machine["mem_size_mib"] * MIB
            return Memory.of_faults(backend["backend_path"], size, track=track, page_size=page_size)
        if machine["huge_pages"] == "2M":
            raise Refused("huge pages are restored by page faults only")
        return Memory.of_file(backend["backend_path"], machine["mem_size_mib"] * MIB, track=track)

    @property
    def _alive(self) -> Guest:
        if self._guest is None:
            raise Refused("there is no VM")
        return self._guest

    def _violated(self, what: str) -> None:
        self._record.add(violation=f"{self._id} {what}")


def _now() -> float:
    return datetime.now(UTC).timestamp()  # noqa: TID251 - the host's clock, as a VMM sees it
