# SPDX-License-Identifier: Apache-2.0
"""The lines that `vhostpci-host monitor` prints for people."""

from vhostpci_host.cli.monitor import line
from vhostpci_shared.terminal import Terminal


def test_confined_device_is_told_of_in_words() -> None:
    confined = {"shared": 80 << 20, "memory": 4 << 30, "pool": 64 << 20}
    event = {"time": 0, "event": "present", "device": "web", "state": "no master"}
    words = line({**event, "confined": confined, "rings": []}, Terminal()).split("  ")
    assert words[1:] == [
        *("web", "present", "state=no master", "confined=80 MiB of 4 GiB")
    ]
    assert "confined" not in line({**event, "confined": None}, Terminal())
