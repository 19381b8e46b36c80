# SPDX-License-Identifier: Apache-2.0
"""The master's driver goes and comes back while the agent and the daemon stay.

  master            vhostpci-host            slave
virtio-net ------ vhost-user, ivshmem ------ vhostpci-guest -- TAP
 reloaded
"""

import pytest

from tests.vm import traffic
from tests.vm.pair import SLAVE_ADDRESS, TAP, Pair

pytestmark = pytest.mark.vm

each_bind = pytest.mark.parametrize("served", ["vfio", "sysfs"], indirect=True)
vfio = pytest.mark.parametrize("served", ["vfio"], indirect=True)


@each_bind
def test_ping_comes_back_after_each_of_three_reloads(link: Pair) -> None:
    for _ in range(3):
        link.master.reload_driver()
        link.master.configure()
        link.wait_link()
        ping = link.ping_both_ways()
        assert ping.received == ping.sent


@vfio
def test_the_tap_has_no_carrier_while_the_driver_is_unloaded(link: Pair) -> None:
    link.master.run("modprobe -r virtio_net")
    try:
        link.slave.wait_for(f"ip link show {TAP} | grep -q NO-CARRIER")
    finally:
        link.master.run("modprobe virtio_net")
    link.master.configure()
    link.wait_link()


@vfio
def test_a_reload_under_load_leaves_a_link_that_works(link: Pair) -> None:
    with traffic.iperf_server(link.slave):
        client = link.master.spawn(
            f"exec iperf3 -c {SLAVE_ADDRESS} -t 60 --connect-timeout 5000"
        )
        link.master.wait_for(
            "test $(cat /sys/class/net/eth0/statistics/tx_packets) -gt 500"
        )
        link.master.reload_driver()
        client.stop()
    link.master.configure()
    link.wait_link()
    ping = link.ping_both_ways()
    assert ping.received == ping.sent
