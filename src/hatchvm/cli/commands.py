"""Every command: its name, where it is, and what it does. Nothing is imported to know that."""

from __future__ import annotations

from typing import Final

COMMANDS: Final = {
    "serve": ("hatchvm.cli.host:serve", "Run the daemon."),
    "network": ("hatchvm.cli.host:network", "Remove the bridge that VMs were plugged into."),
    "demo": ("hatchvm.cli.demo:demo", "Watch a VM fall asleep and wake up on this machine."),
    "doctor": ("hatchvm.cli.host:doctor", "Check what this host can do."),
    "vm": ("hatchvm.cli.vms:app", "Create VMs and move them between states."),
    "hold": ("hatchvm.cli.holds:app", "Keep VMs awake for a while."),
    "route": ("hatchvm.cli.routes:app", "Lead subdomains and custom domains to VMs."),
    "snapshot": ("hatchvm.cli.snapshots:app", "Look at snapshots."),
    "store": ("hatchvm.cli.store:app", "Look after what is stored."),
    "image": ("hatchvm.cli.images:app", "Manage what VMs boot from."),
    "template": ("hatchvm.cli.templates:app", "Keep sets of defaults for new VMs."),
    "key": ("hatchvm.cli.keys:app", "Make and revoke API keys."),
    "ssh": ("hatchvm.cli.ssh:ssh", "Log in to a VM, waking it if it sleeps."),
    "ssh-key": ("hatchvm.cli.keys:ssh_keys", "Say whose SSH keys may log in to VMs."),
    "events": ("hatchvm.cli.watch:events", "Print state changes as they happen."),
    "status": ("hatchvm.cli.watch:status", "Show VMs by state, and snapshots that are not stored yet."),
    "health": ("hatchvm.cli.watch:health", "Ask the daemon how it is."),
}


def first_page() -> str:
    """What `hatchvm --help` prints."""
    width = max(map(len, COMMANDS)) + 2
    commands = "\n".join(f"  {name:<{width}}{summary}" for name, (_, summary) in COMMANDS.items())
    return (
        "Usage: hatchvm [--json] [--url URL] COMMAND ...\n\n"
        "Serverless microVMs on your own machines: unused VMs are frozen, the next request wakes them.\n\n"
        f"Commands:\n{commands}\n\n"
        "Options:\n"
        "  --json      Print JSON for programs.\n"
        "  --url URL   The daemon; default HATCH_URL, else HATCH_HTTP_ADDR.\n"
        "  --version   Print the version.\n\n"
        "`hatchvm COMMAND --help` says more. The API key is read from HATCH_API_KEY, else from the data directory."
    )
