# SPDX-License-Identifier: Apache-2.0
"""What the kernel drops because the queue of a TAP is full."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.fakes.netns import ip
from tests.fakes.plane import NO_PACKETS
from vhostpci_guest.tap.naming import Rules
from vhostpci_guest.tap.tap_port import Ports, TapPort

QUEUE, SENT = 4, 100
MAC = "02:00:00:00:00:02"


@pytest.fixture
def port(network: None) -> Iterator[TapPort]:
    with closing(Ports(Rules(), **NO_PACKETS).make("0000:00:05.0")) as port:
        port.open(1, "net0")
        port.set_carrier(True)
        yield port


def send(name: str) -> None:
    """Send more packets through a TAP than its queue takes."""
    ip("link", "set", name, "txqueuelen", str(QUEUE))
    # Else the kernel sends packets about its IPv6 address whenever it likes.
    ip("link", "set", name, "addrgenmode", "none")
    ip("addr", "add", "10.8.0.1/24", "dev", name)
    ip("link", "set", name, "up")
    ip("neigh", "add", "10.8.0.2", "lladdr", MAC, "dev", name)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        for _ in range(SENT):
            ours.sendto(b"x", ("10.8.0.2", 9))


def counted(name: str) -> int:
    """Return what ip(8) says."""
    (link,) = json.loads(ip("-s", "-j", "link", "show", name))
    return int(link["stats64"]["tx"]["dropped"])


def test_dropped_packets_are_counted(port: TapPort) -> None:
    assert port.name is not None
    assert port.dropped == 0
    send(port.name)
    before, dropped, after = counted(port.name), port.dropped, counted(port.name)
    assert dropped is not None
    assert SENT - 2 * QUEUE <= before <= dropped <= after
    ip("link", "delete", port.name)
    assert port.dropped is None


def test_packets_that_a_moved_tap_has_dropped_are_counted(
    port: TapPort, elsewhere: int
) -> None:
    assert port.name is not None
    send(port.name)
    before = counted(port.name)
    ip("link", "set", port.name, "netns", f"/proc/{os.getpid()}/fd/{elsewhere}")
    assert port.dropped is not None
    assert port.dropped >= before >= SENT - 2 * QUEUE


def test_nothing_is_known_before_there_is_a_tap() -> None:
    assert Ports(Rules(), **NO_PACKETS).make("0000:00:05.0").dropped is None
