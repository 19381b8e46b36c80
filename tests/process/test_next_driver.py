# SPDX-License-Identifier: Apache-2.0
"""What the slave sent to one driver never reaches the next one, nor another machine."""

import json
import sys
from collections.abc import Callable

import pytest

from tests.process.lab import SLAVE_ADDRESS, Lab, ip
from tests.process.master import TAP, Master
from tests.process.program import run
from tests.waiting import wait_for
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import Request
from vhostpci_shared.virtio import Feature

pytestmark = pytest.mark.process

SEND = """
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    for _ in range(2000):
        sock.sendto(bytes(100), ("10.9.0.255", 9))
"""
OFFLOADS = (
    Feature.NET_F_GUEST_CSUM
    | Feature.NET_F_GUEST_TSO4
    | Feature.NET_F_GUEST_TSO6
    | Feature.NET_F_GUEST_ECN
)


def received() -> int:
    """How many packets the master's interface has received."""
    shown = json.loads(run("ip", "-j", "-s", "link", "show", TAP).stdout)
    return int(shown[0]["stats64"]["rx"]["packets"])


def reset(master: Master) -> None:
    """Load the driver again."""
    master.unload()


def leave(master: Master) -> None:
    """Let another machine connect in the master's place."""
    master.reconnect()


@pytest.mark.parametrize("end", [reset, leave])
def test_packets_that_waited_for_a_driver_are_not_the_next_ones(
    lab: Lab, end: Callable[[Master], None]
) -> None:
    lab.start_daemon()
    lab.start_agent()
    master = lab.start_master()
    master.load()
    lab.wait_carrier("UP")
    wait_for(lambda: lab.ping_from_slave(1) == 1, "a first ping comes back")
    master.stop_card()  # the driver hangs, so 256 buffers are filled, and no more
    lab.run_in_slave(sys.executable, "-c", SEND)
    end(master)
    before = received()
    master.load(without=OFFLOADS)
    lab.wait_carrier("UP")
    wait_for(lambda: lab.ping_from_slave(1) == 1, "a ping comes back")
    # Some are its own: of this ping, of ARP, and of IPv6 when the carrier came.
    assert received() - before < 50


def test_tap_with_a_larger_mtu_is_followed_without_segmentation_offload(
    lab: Lab,
) -> None:
    lab.start_daemon()
    lab.start_agent()
    master = lab.start_master()
    ip("link", "set", TAP, "mtu", "9000")
    master.load(without=OFFLOADS)
    lab.wait_carrier("UP")
    wait_for(lambda: lab.ping_from_slave(1) == 1, "a first ping comes back")
    lab.run_in_slave("ip", "link", "set", "vp0", "mtu", "9000")
    assert lab.ping_from_slave(5, "-M", "do", "-s", "8000") == 5


def test_ring_without_a_kick_is_served_at_once(lab: Lab) -> None:
    lab.start_daemon()
    # Else the slave sends packets without being asked, which wake the worker.
    lab.run_in_slave("sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
    # First: an agent that comes later has the kicks themselves as its vectors.
    lab.start_agent().wait_log("serving")
    master = lab.start_master()
    master.load()
    lab.wait_carrier("UP")
    wait_for(lambda: lab.ping_from_slave(1) == 1, "a first ping comes back")
    master.frontend.send(Request.SET_VRING_KICK, vu.VringFd(1, nofd=True))
    wait_for(lambda: lab.ping_from_master(1) == 1, "the ring is polled")
    # Each waits for its answer: no packet of the other direction wakes the worker.
    run("ip", "neigh", "change", SLAVE_ADDRESS, "dev", TAP, "nud", "permanent")
    assert [lab.ping_from_master(1) for _ in range(5)] == [1] * 5


def test_tap_that_is_renamed_while_its_master_reboots_goes_on(lab: Lab) -> None:
    lab.start_daemon()
    agent = lab.start_agent()
    master = lab.start_master()
    master.load()
    lab.wait_carrier("UP")
    master.reconnect()
    lab.run_in_slave("ip", "link", "set", "vp0", "down")
    lab.run_in_slave("ip", "link", "set", "vp0", "name", "eth7")
    lab.run_in_slave("ip", "link", "set", "eth7", "up")
    master.frontend.send(Request.NET_SET_MTU, vu.U64(1400))
    master.load()
    wait_for(lambda: lab.ping_from_slave(1) == 1, "a ping comes back")
    wait_for(
        lambda: "mtu 1400" in lab.run_in_slave("ip", "link", "show", "eth7").stdout,
        "the renamed TAP has the MTU that the master was told",
    )
    assert agent.process.poll() is None
