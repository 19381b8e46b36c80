# SPDX-License-Identifier: Apache-2.0
"""The daemon is killed while both VMs run, and neither QEMU notices it.

  master            vhostpci-host            slave
virtio-net ------ vhost-user, ivshmem ------ vhostpci-guest -- TAP
              kept by its parent process
"""

from pathlib import Path

import pytest

from tests.vm import pair
from tests.vm.daemon import Daemon
from tests.vm.pair import Pair

pytestmark = pytest.mark.vm


def assert_packets_cross(link: Pair) -> None:
    ping = link.ping_both_ways()
    assert ping.received == ping.sent


def test_vms_go_on_when_the_daemon_is_killed(logs: Path) -> None:
    here = logs / "keeper"
    with Daemon("card", memory="512M", logs=here) as daemon:
        master, slave = pair.make(daemon, here)
        with slave, master:
            slave.wait_ready()
            master.wait_ready()
            link = Pair(daemon, master, slave)
            with slave.agent("vfio"):
                master.configure()
                link.wait_link()
                said = len(daemon.output())
                peers = daemon.status()["slave"]["call_peers_used"]
                for _ in range(2):
                    daemon.replace()
                    assert_packets_cross(link)
                news = daemon.output()[said:]
                assert "connected" not in news, news
                assert "rings" not in news, news
                assert daemon.status()["slave"]["call_peers_used"] == peers
                # What comes next is answered as well: the driver's end and its start.
                master.reload_driver()
                master.configure()
                daemon.replace()
                link.wait_link()
                assert_packets_cross(link)
                assert daemon.status()["slave"]["call_peers_used"] == peers + 1
