# SPDX-License-Identifier: Apache-2.0
"""The names of the bindings, for the command line and for the bindings themselves.

This module imports nothing, so that `vhostpci-guest status` starts without the modules
that bind devices (pci/bindings.py).
"""

AUTO = "auto"
"""No binding: the choice of the best one that works."""
KMOD, VFIO, UIO, SYSFS = "kmod", "vfio", "uio", "sysfs"
NAMES = (KMOD, VFIO, UIO, SYSFS)
"""All bindings, the best first."""


def signals(interrupts: bool) -> str:
    """Return the text for people that says how the agent learns of changes."""
    return "interrupts" if interrupts else "polling"
