# SPDX-License-Identifier: Apache-2.0
"""How many packets have crossed: the daemon is asked by its control socket.

A command of ours would be a process each time, which takes time from the VMs.
"""

import json
import socket
from pathlib import Path

_PATIENCE = 1.0
"""Seconds for the daemon's answer."""


def crossed(control: Path) -> tuple[int, int]:
    """Return the packets of a device from its master, and to it.

    Args:
        control: the device's control socket.

    Raises:
        OSError: the daemon is not there, or does not answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_PATIENCE)
        connection.connect(str(control))
        connection.sendall(b'{"command": "status"}\n')
        line = connection.makefile("rb").readline()
    rings = (json.loads(line) if line else {}).get("result", {}).get("rings", ())
    # VIRTIO, "Network Device", "Virtqueues": even numbers are receive queues.
    counts = [0, 0]
    for number, ring in enumerate(rings):
        counts[number % 2] += (ring["agent"] or {}).get("packets", 0)
    return counts[1], counts[0]


def by_arrow(control: Path) -> dict[str, int]:
    """The same, by the names of the drawing's arrows."""
    up, down = crossed(control)
    return {"up": up, "down": down}
