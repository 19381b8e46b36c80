# SPDX-License-Identifier: Apache-2.0
"""The script that checks, in a confined master, that its slave sees the card alone."""

import re
from importlib import resources

from ..config.confined import MIB
from ..config.confined_layout import Layout, Machine

NONE = """\
#!/bin/sh
echo 'this looks at nothing: vhostpci-host master-check failed, and said why' >&2
exit 1
"""
"""The script where there is none, since an empty one would find nothing wrong."""


def script(name: str, mac: str, its: Layout, arguments: str) -> str:
    """Return the script for one device.

    Args:
        name: the device's.
        mac: its card's MAC address.
        its: the layout of its master's memory.
        arguments: the command that prints the arguments of its master.
    """
    shared, bios, efi = its.part("shared"), "", ""
    if its.machine is Machine.Q35:
        bios, efi = (str(limit // MIB) for limit in its.initrd_limits())
    values = {
        "NAME": name,
        "MAC": mac,
        "ARGUMENTS": arguments,
        "POOL_START": f"{shared.start:#x}",
        "POOL_END": f"{its.rings:#x}",
        "RINGS_START": f"{its.rings:#x}",
        "RINGS_END": f"{shared.end:#x}",
        "BIOS_INITRD": bios,
        "EFI_INITRD": efi,
        "WORDS": its.kernel_words(),
    }
    text = resources.files(__package__).joinpath("master_check.sh").read_text()
    return re.sub("@([A-Z_]+)@", lambda match: values[match[1]], text)
