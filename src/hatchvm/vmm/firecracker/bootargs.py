"""The kernel's arguments under Firecracker: a pure function of a launch plan.

A Firecracker has no way to switch a machine off. It ends when the guest resets the machine through the keyboard
controller, so a guest of ours that is told to power off resets instead: it sees the last word here.
"""

from __future__ import annotations

from typing import Final

from hatchvm.ports.vmm import LaunchPlan

#: By the keyboard controller. What QEMU's microvm understands (`reboot=t`, a triple fault) is an error here.
RESET: Final = "reboot=k"
#: Where an argument is given twice the kernel believes the last one, so these follow the image's own and the user's.
_ARGUMENTS: Final = (
    RESET,
    # The only clock that Firecracker sets right when it loads a snapshot.
    "clocksource=kvm-clock",
    # There is one serial port, no mouse, and a keyboard that answers nothing: it only ever says Ctrl+Alt+Del. There is
    # no PCI. To look for more takes time, as each access to a port leaves the guest.
    *("8250.nr_uarts=1", "i8042.noaux", "i8042.nomux", "i8042.dumbkbd", "pci=off"),
    # For the programs in the guest: see `images/guest` and `images/debian12`.
    "hatch.vmm=firecracker",
)
#: What follows is for the guest's first program, not for the kernel.
_END: Final = " -- "


def boot_args(plan: LaunchPlan) -> str:
    """Firecracker itself adds `root=/dev/vda rw` for a drive that is the root device."""
    kernel, end, init = plan.boot_args.partition(_END)
    return " ".join((*kernel.split(), *_ARGUMENTS)) + end + init
