# SPDX-License-Identifier: Apache-2.0
"""Our own commands, as texts tell their reader to run them for one device."""

from .device import Mode


def master_arguments(name: str, mode: str) -> str:
    """Return the command that prints the arguments of the device's master."""
    return f"vhostpci-host qemu-args {name} --role master{_size(mode)}"


def master_check(name: str, mode: str) -> str:
    """Return the command that prints the script for the device's confined master."""
    return f"vhostpci-host master-check {name}{_size(mode)}"


def _size(mode: str) -> str:
    # Of an attach device no daemon knows how much memory its master has.
    return " --memory SIZE" if mode == Mode.ATTACH else ""
