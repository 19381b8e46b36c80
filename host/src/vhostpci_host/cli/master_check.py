# SPDX-License-Identifier: Apache-2.0
"""The script that checks, in a confined master, that its slave sees the card alone."""

import re
from importlib import resources

from ..errors import HostError


def script(name: str, mac: str, words: str, *, pool: int) -> str:
    """Return the script for one device.

    Args:
        name: the device's.
        mac: its card's MAC address.
        words: the kernel's words, one of which says where the ring area lies.
        pool: bytes of the bounce pool, which ends where the ring area begins.

    Raises:
        HostError: no word says where the ring area lies.
    """
    found = re.search(r"\bcma=\d+M@(0x[0-9a-f]+)-(0x[0-9a-f]+)", words)
    if found is None:
        raise HostError(f"{name}: no cma=SIZE@START-END among {words!r}", code="H145")
    start, end = (int(text, 16) for text in found.groups())
    values = {
        "NAME": name,
        "MAC": mac,
        "POOL_START": f"{start - pool:#x}",
        "POOL_END": f"{start:#x}",
        "RINGS_START": f"{start:#x}",
        "RINGS_END": f"{end:#x}",
        "WORDS": words,
    }
    text = resources.files(__package__).joinpath("master_check.sh").read_text()
    return re.sub("@([A-Z_]+)@", lambda match: values[match[1]], text)
