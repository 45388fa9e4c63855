"""`hatchvm demo`: a VM boots, serves, sleeps and is woken by a request, with a stopwatch beside it."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import httpx2

from hatchvm.base.errors import Internal, Unavailable
from hatchvm.base.units import format_bytes
from hatchvm.cli.child import ChildDaemon
from hatchvm.cli.images import cache_dir
from hatchvm.client import Client
from hatchvm.domain.image import TINY
from hatchvm.images import builtin

_SUBDOMAIN: Final = "demo"
_HOST: Final = f"{_SUBDOMAIN}.hatch.localhost"
_PATH: Final = "/cgi-bin/visit"
_PORT: Final = 8080
_MEM_MIB: Final = 256
_ANSWER_S: Final = 90.0
#: A page that counts its visits in RAM: it goes on counting only if memory came back.
_USER_DATA: Final = r"""#!/bin/sh
mkdir -p /www/cgi-bin
mount -t tmpfs -o size=1m counter /mnt
cat > /www/cgi-bin/visit <<'EOF'
#!/bin/sh
n=$(( $(cat /mnt/visits 2>/dev/null || echo 0) + 1 )); echo $n > /mnt/visits
printf 'Content-Type: text/plain\r\n\r\nHello from your VM, visit %s\n' "$n"
EOF
chmod +x /www/cgi-bin/visit
httpd -p 8080 -h /www
"""


def demo(*, once: bool = False) -> int:
    """Create a VM, put it to sleep, wake it with a request; then leave it running until Ctrl-C.

    Parameters
    ----------
    once
        End after the last step; exit code 0 only if every step held.
    """
    print(f"\n  {_bold('Hatch')}: a VM that nobody uses costs nothing; the next request wakes it.\n")
    began = time.perf_counter()
    image = asyncio.run(builtin.build(TINY, cache_dir(), lambda words: print(f"  image tiny: {words}", flush=True)))
    _line("image tiny", time.perf_counter() - began, f"{format_bytes(image.size_bytes)}, in {cache_dir()}")
    with tempfile.TemporaryDirectory(prefix="hatchvm-demo-") as folder:
        daemon = ChildDaemon(Path(folder, "data"), {})
        try:
            began = time.perf_counter()
            daemon.start()
            _line("start Hatch", time.perf_counter() - began, f"its API is on {daemon.api}")
            with daemon.client() as client:
                vm_id = _story(daemon, client)
            if not once:
                _invite(daemon, vm_id)
        except KeyboardInterrupt:
            pass
        finally:
            daemon.end()
    print("  Everything is stopped and removed.\n")
    return 0


def _story(daemon: ChildDaemon, client: Client) -> str:
    """Every step with its time; raises if one does not hold. The id of the VM, which runs at the end."""
    began = time.perf_counter()
    vm = client.create_vm(user_data=_USER_DATA, mem_mib=_MEM_MIB, name="demo")
    client.create_route(vm["id"], target_port=_PORT, subdomain=_SUBDOMAIN)
    _line("create a VM", time.perf_counter() - began, f"{vm['id']}, 1 vCPU, {_MEM_MIB} MiB, behind {_HOST}")
    page, _ = _visit(daemon)
    boot_s = time.perf_counter() - began
    _line("cold boot", boot_s, f"to the first byte of “{page}”")
    page, warm_s = _visit(daemon)
    _line("warm request", warm_s, f"“{page}”")

    began = time.perf_counter()
    snapshot = client.snapshot_vm(vm["id"])
    stored_s = time.perf_counter() - began
    _expect(client, vm["id"], "snapshotted")
    _line("fall asleep", _pause_s(daemon), "is how long the guest stood still; now its process is gone")
    share = f"{format_bytes(snapshot['stored_bytes'])} for {format_bytes(snapshot['size_bytes'])} of memory and disk"
    _line("store", stored_s, f"in all: {share}")

    page, wake_s = _visit(daemon)
    if not page.endswith("visit 3"):
        raise Internal(f"the VM woke without its memory: it says “{page}”")
    _expect(client, vm["id"], "running")
    _line("wake", wake_s, f"from the request to the first byte of “{page}”")
    print(f"\n  It went on counting, so its memory came back: {boot_s / wake_s:.0f} times faster than a boot.\n")
    return vm["id"]


def _invite(daemon: ChildDaemon, vm_id: str) -> None:
    """Say what to try; return never (Ctrl-C raises)."""
    key = f'-H "X-API-Key: $(cat {daemon.paths.api_key})"'
    page = f"curl http://{_HOST}:{daemon.proxy_port}{_PATH}"
    print("  Hatch keeps running. From another terminal:\n")
    print(f"    {page}")
    print(f"    curl -X POST {key} {daemon.api}/vms/{vm_id}/snapshot    # put it to sleep")
    print(f"    {page}    # wake it")
    print(f"    curl {key} {daemon.api}/vms\n")
    print(f"  API documentation: {daemon.api}/docs    Log: {daemon.log_file}")
    print("  Ctrl-C ends everything.\n", flush=True)
    while True:
        signal.pause()


def _visit(daemon: ChildDaemon) -> tuple[str, float]:
    """One request through the proxy: the page, and seconds to its first byte. Raises Unavailable unless it is 200."""
    began = time.perf_counter()
    url = f"http://127.0.0.1:{daemon.proxy_port}{_PATH}"
    with httpx2.stream("GET", url, headers={"Host": _HOST}, timeout=_ANSWER_S, trust_env=False) as answer:
        first_byte_s = time.perf_counter() - began
        page = answer.read().decode(errors="replace").strip()
    if answer.status_code != 200:
        raise Unavailable(f"the VM's page answered {answer.status_code}: {page}")
    return page, first_byte_s


def _pause_s(daemon: ChildDaemon) -> float:
    """How long the guest stood still in its only suspend, as the daemon measured it."""
    metrics = httpx2.get(f"{daemon.api}/metrics", trust_env=False).text
    match = re.search(r"^hatch_pause_seconds_sum (\S+)$", metrics, re.MULTILINE)
    return float(match.group(1)) if match else float("nan")


def _expect(client: Client, vm_id: str, state: str) -> None:
    vm = client.get_vm(vm_id)
    if vm["state"] != state:
        raise Internal(f"the VM should be {state}, it is {vm['state']}: {vm['state_reason']}")


def _line(step: str, seconds: float, text: str) -> None:
    time_ = f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
    print(f"  {step:<14}{_bold(f'{time_:>9}')}  {text}", flush=True)


def _bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text
