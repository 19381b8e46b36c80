# SPDX-License-Identifier: Apache-2.0
"""The VMs start in either order, the agent before or after the master's driver.

  master            vhostpci-host            slave
virtio-net ------ vhost-user, ivshmem ------ vhostpci-guest -- TAP
 1st or 2nd          always there             2nd or 1st
"""

import pytest

from tests.vm import pair
from tests.vm.daemon import Daemon
from tests.vm.pair import TAP, Pair

pytestmark = pytest.mark.vm


@pytest.fixture
def pair_down(daemon: Daemon) -> Pair:
    """A daemon and both VMs, not started."""
    return Pair(daemon, *pair.make(daemon, daemon.log.parent))


def test_master_first(pair_down: Pair) -> None:
    with pair_down.master as master:
        master.wait_ready()
        with pair_down.slave as slave:
            slave.wait_ready()
            with slave.agent("vfio"):
                _assert_packets_cross(pair_down)


def test_slave_and_its_agent_first_and_then_one_master_after_another(
    pair_down: Pair, daemon: Daemon
) -> None:
    no_carrier = f"ip link show {TAP} | grep -q NO-CARRIER"
    with pair_down.slave as slave:
        slave.wait_ready()
        with slave.agent("vfio"):
            slave.wait_for(no_carrier)
            with pair_down.master as master:
                master.wait_ready()
                _assert_packets_cross(pair_down)
            slave.wait_for(no_carrier)
            second, _ = pair.make(daemon, daemon.log.parent)
            with second:
                second.wait_ready()
                _assert_packets_cross(Pair(daemon, second, slave))


def _assert_packets_cross(link: Pair) -> None:
    link.master.configure()
    link.wait_link()
    ping = link.ping_both_ways()
    assert ping.received == ping.sent
