# SPDX-License-Identifier: Apache-2.0
"""What `status`, `stats` and `devices` print, whole, for terminals of several kinds."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests import golden
from tests.unit.guest.cli.test_main import LINK
from vhostpci_guest.cli import devices
from vhostpci_guest.cli.print_stats import statistics, stats_text
from vhostpci_guest.cli.print_status import link_text
from vhostpci_guest.dataplane.interface import Stats

HERE = Path(__file__).parent / "golden"
NEW: dict[str, Any] = {
    **LINK,
    "state": "ready",
    "message": "",
    "version": "0.1.0",
    "carrier": True,
    "data_plane": "ring",
    "data_plane_reason": "our threads: the default",
    "windows": [],
    "rings": [
        {**ring, "state": "running", "reason": "", "fill": fill, "format": "split"}
        for ring, fill in zip(LINK["rings"], (250, 3), strict=True)
    ],
}
SENT = replace(Stats(), packets=48_213_377, bytes=61_000_123_456, kicks=1_200_345)
TAKEN = replace(Stats(), packets=912, bytes=81_234, drop_down=7, batches=(912,) * 11)
COUNTED: dict[str, Any] = {
    "device": "0000:00:05.0",
    "name": "web",
    "tap": "net0",
    "pid": 77,
    "tap_dropped": 4,
    "rings": [
        {"ring": 0, "stats": asdict(SENT)},
        {"ring": 1, "stats": asdict(TAKEN)},
    ],
}
DEVICE = {
    "address": "0000:00:05.0",
    "driver": "vfio-pci",
    "iv_position": 0,
    "window_of": [],
    "window": 1 << 30,
    "vectors": 3,
    "agent": 77,
    "taken": None,
    "bindings": {
        "kmod": {
            "interrupts": True,
            "cached": True,
            "caching": "cached",
            "why_not": "no kernel module uio_vhostpci for 6.12.1: install "
            "vhostpci-dkms, or see kmod/README.md",
        },
        "vfio": {
            "interrupts": True,
            "cached": False,
            "caching": "uncached",
            "why_not": None,
        },
    },
    "better": "kmod, for a cached window: its line has what it takes",
}


@pytest.mark.parametrize("kind", golden.TERMINALS)
def test_status(kind: str) -> None:
    lines = link_text(NEW, golden.TERMINALS[kind])
    golden.check(HERE / f"status-{kind}.txt", lines)


@pytest.mark.parametrize("kind", ["80", "40"])
def test_status_of_an_earlier_agent_that_has_failed(kind: str) -> None:
    lines = link_text(LINK, golden.TERMINALS[kind])
    golden.check(HERE / f"status-failed-{kind}.txt", lines)


def test_status_of_the_kernels_data_plane() -> None:
    totals = {"rx_packets": 70_000, "rx_bytes": 9, "tx_packets": 3, "tx_bytes": 4}
    lacking = ["kicks", "packets", "octets", "drops"]
    link = {**NEW, "data_plane": "vhost-net", "not_counted": lacking, "totals": totals}
    golden.check(HERE / "status-vhost-net.txt", link_text(link, golden.TERMINALS["80"]))


@pytest.mark.parametrize("kind", golden.TERMINALS)
def test_stats(kind: str) -> None:
    lines = stats_text(statistics(COUNTED), golden.TERMINALS[kind])
    golden.check(HERE / f"stats-{kind}.txt", lines)


@pytest.mark.parametrize("kind", golden.TERMINALS)
def test_devices(kind: str) -> None:
    lines = devices.lines(DEVICE, golden.TERMINALS[kind])
    golden.check(HERE / f"devices-{kind}.txt", lines)
