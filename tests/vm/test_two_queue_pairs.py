# SPDX-License-Identifier: Apache-2.0
"""A card with two queue pairs, of which the master's guest uses one or both.

  master               vhostpci-host            slave
virtio-net, mq=on --- vhost-user, ivshmem --- vhostpci-guest -- TAP, two queues
ethtool -L
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import pair
from tests.vm.daemon import Daemon
from tests.vm.pair import Pair

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]


@pytest.fixture
def link(logs: Path) -> Iterator[Pair]:
    """Both VMs, an agent in the slave, packets crossing."""
    with Daemon("two", memory="512M", logs=logs / "two", queue_pairs=2) as daemon:
        master, slave = pair.make(daemon, daemon.log.parent)
        with slave, master:
            slave.wait_ready()
            master.wait_ready()
            with slave.agent("vfio"):
                master.configure()
                link = Pair(daemon, master, slave)
                link.wait_link()
                yield link


def running(link: Pair) -> list[str]:
    """Return the queues that the daemon has started."""
    rings = link.daemon.status()["rings"]
    return [ring["queue"] for ring in rings if ring["state"] == "running"]


def all_pings_come_back(link: Pair) -> bool:
    ping = link.ping_both_ways()
    return ping.received == ping.sent


def test_queue_pairs_come_and_go_while_packets_cross(link: Pair) -> None:
    assert all_pings_come_back(link)
    for pairs in (2, 1, 2):
        link.master.run(f"ethtool -L eth0 combined {pairs}")
        assert all_pings_come_back(link)
        assert running(link) == ["rx0", "tx0", "rx1", "tx1"][: 2 * pairs]
    link.master.reload_driver()
    link.master.configure()
    link.wait_link()
    assert all_pings_come_back(link)
