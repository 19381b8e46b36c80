# SPDX-License-Identifier: Apache-2.0
"""A card with eight queue pairs, of which the master's guest uses some.

  master               vhostpci-host            slave
virtio-net, mq=on --- vhost-user, ivshmem --- vhostpci-guest -- TAP, eight queues
ethtool -L
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import pair, traffic
from tests.vm.daemon import Daemon
from tests.vm.pair import MASTER_ADDRESS, SLAVE_ADDRESS, Pair

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def link(logs: Path) -> Iterator[Pair]:
    """Both VMs, an agent in the slave, packets crossing."""
    with Daemon("eight", memory="512M", logs=logs / "eight", queue_pairs=8) as daemon:
        master, slave = pair.make(daemon, daemon.log.parent)
        with slave, master:
            slave.wait_ready()
            master.wait_ready()
            with slave.agent("vfio"):
                master.configure()
                link = Pair(daemon, master, slave)
                link.wait_link()
                yield link


def use(link: Pair, pairs: int) -> None:
    link.master.run(f"ethtool -L eth0 combined {pairs}")


def wait_reported(link: Pair, pairs: int) -> None:
    """Wait until daemon and agent report these pairs as running.

    The daemon does not wait for the agent when QEMU disables a pair.
    """
    queues = [f"{way}{n}" for n in range(pairs) for way in ("rx", "tx")]
    wanted = (queues, [*range(2 * pairs)])
    link.slave.wait_until(lambda: reported(link) == wanted, lambda: reported(link))


def reported(link: Pair) -> tuple[list[str], list[int]]:
    return running_by_the_daemon(link), running_by_the_agent(link)


def running_by_the_daemon(link: Pair) -> list[str]:
    rings = link.daemon.status()["rings"]
    return [ring["queue"] for ring in rings if ring["state"] == "running"]


def running_by_the_agent(link: Pair) -> list[int]:
    (status,) = link.slave.agents()
    return [ring["ring"] for ring in status["rings"] if ring["state"] == "running"]


def test_pings_go_on_while_pairs_come_and_go(link: Pair) -> None:
    """A packet that is in a queue when the queue is disabled may be lost: the slave's
    kernel empties the TAP's, and the master's sends into a ring that it has disabled
    until `netif_set_real_num_tx_queues` returns.
    """
    changes = (8, 3, 1)
    with (
        traffic.pinging(link.master, SLAVE_ADDRESS) as upwards,
        traffic.pinging(link.slave, MASTER_ADDRESS) as downwards,
    ):
        for pairs in changes:
            use(link, pairs)
            wait_reported(link, pairs)
        for running in (upwards, downwards):
            running.wait_answers(6)
    for running in (upwards, downwards):
        ping = running.result()
        evidence = f"{running.output()}\n{link.counters()}"
        assert ping.sent > 5, evidence
        assert ping.sent - ping.received < len(changes), evidence


def test_many_connections_spread_over_all_pairs(link: Pair) -> None:
    use(link, 8)
    before = packets(link)
    with traffic.iperf_server(link.master):
        traffic.tcp(link.slave, MASTER_ADDRESS, seconds=2, streams=16)
    grown = [now - then for now, then in zip(packets(link), before, strict=True)]
    assert sum(count > 0 for count in grown[::2]) > 3, "receive"
    assert sum(count > 0 for count in grown[1::2]) > 3, "transmit"


def packets(link: Pair) -> list[int]:
    return [ring["agent"]["packets"] for ring in link.daemon.status()["rings"]]


def test_all_pairs_work_again_after_a_reload(link: Pair) -> None:
    link.master.reload_driver()
    use(link, 8)
    link.master.configure()
    link.wait_link()
    ping = link.ping_both_ways()
    assert ping.received == ping.sent
