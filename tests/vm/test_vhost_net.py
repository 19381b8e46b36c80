# SPDX-License-Identifier: Apache-2.0
"""The slave's kernel works the master's rings: the data plane vhost-net.

  master            vhostpci-host            slave
virtio-net ------ vhost-user, ivshmem ------ vhost_net -- TAP
 two queue pairs                                  the agent starts and stops it
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import daemon_processes
from tests.vm import dmesg, pair, traffic
from tests.vm.daemon import Daemon
from tests.vm.harness import Job
from tests.vm.pair import MASTER_ADDRESS, SLAVE_ADDRESS, TAP, Pair, Slave
from vhostpci_guest.dataplane.workers import thread_name

pytestmark = pytest.mark.vm

NO_CARRIER = f"ip link show {TAP} | grep -q NO-CARRIER"


@pytest.fixture(scope="module")
def link(logs: Path) -> Iterator[Pair]:
    """Both VMs, without an agent."""
    here = logs / "vhost-net"
    with Daemon("vhost", memory="512M", logs=here, queue_pairs=2) as daemon:
        master, slave = pair.make(daemon, here, module=True)
        with slave, master:
            slave.wait_ready()
            master.wait_ready()
            yield Pair(daemon, master, slave)


@contextmanager
def served(link: Pair, bind: str) -> Iterator[Job]:
    with link.slave.agent(bind, "--data-plane", "vhost-net") as agent:
        link.master.configure()
        link.wait_link()
        yield agent


def assert_tcp_flows(link: Pair, streams: int = 1) -> None:
    with traffic.iperf_server(link.slave):
        assert traffic.tcp(link.master, SLAVE_ADDRESS, 1, streams) > 0
    with traffic.iperf_server(link.master):
        assert traffic.tcp(link.slave, MASTER_ADDRESS, 1, streams) > 0


def assert_drivers_are_content(link: Pair) -> None:
    """The master's driver says so when a buffer comes back twice."""
    assert "is not a head" not in link.master.run("dmesg").stdout
    for vm in (link.master, link.slave):
        dmesg.check(vm)


@contextmanager
def flow(link: Pair) -> Iterator[Job]:
    """Run a TCP stream from the master to the slave, which the block interrupts."""
    with traffic.iperf_server(link.slave):
        client = link.master.spawn(
            f"exec iperf3 -c {SLAVE_ADDRESS} -t 60 --connect-timeout 5000"
        )
        count = "/sys/class/net/eth0/statistics/tx_packets"
        sent = int(link.master.run(f"cat {count}").stdout)
        link.master.wait_for(f"test $(cat {count}) -gt {sent + 300}")
        yield client
        client.send(signal.SIGKILL)  # else it says good-bye to the other end first


@pytest.mark.parametrize("bind", ["vfio", "uio", "sysfs", "kmod"])
def test_packets_cross_until_the_device_is_taken_away_with_each_binding(
    link: Pair, bind: str
) -> None:
    """The slave's kernel removes the function under load, as at an unplug."""
    slave = link.slave
    with served(link, bind):
        link.assert_packets_cross()
        assert_tcp_flows(link)
        (status,) = slave.agents()
        assert status["data_plane"] == "vhost-net"
        assert {ring["state"] for ring in status["rings"]} == {"running"}
        # The card has two queue pairs, so the TAP counts for both together.
        assert status["totals"]["rx_packets"] > 100
        assert status["totals"]["tx_packets"] > 100
        assert "packets" in status["not_counted"]
        # With our module the kernel rings the doorbell.
        assert has_call_thread(slave) is (bind != "kmod")
        with flow(link):
            for module in ("vhost_net", *(["uio_vhostpci"] if bind == "kmod" else [])):
                tried = slave.run(f"rmmod {module}", check=False)
                assert f"Module {module} is in use" in tried.stderr
            place = status["device"]
            slave.run(f"echo 1 > /sys/bus/pci/devices/{place}/remove", timeout=60)
            slave.wait_for(NO_CARRIER)
        slave.run("echo 1 > /sys/bus/pci/rescan", timeout=60)
        slave.wait_for(f"ip link show {TAP} | grep -q LOWER_UP")
        link.assert_packets_cross()
    assert_drivers_are_content(link)


def has_call_thread(slave: Slave) -> bool:
    """Whether the agent has a thread that passes calls on."""
    # A thread may end before cat opens its file.
    names = slave.run("cat /proc/[0-9]*/task/*/comm; true").stdout.splitlines()
    return thread_name("vhost", "call") in names


def test_both_queue_pairs_carry_packets(link: Pair) -> None:
    with served(link, "vfio"):
        link.master.run("ethtool -L eth0 combined 2")
        link.slave.wait_until(lambda: len(running(link)) == 4, lambda: running(link))
        before = indexes(link)
        assert_tcp_flows(link, streams=8)
        assert all(old != new for old, new in zip(before, indexes(link), strict=True))
        link.master.run("ethtool -L eth0 combined 1")
        link.slave.wait_until(lambda: len(running(link)) == 2, lambda: running(link))
        link.assert_packets_cross()
    assert_drivers_are_content(link)


def running(link: Pair) -> list[int]:
    (status,) = link.slave.agents()
    return [ring["ring"] for ring in status["rings"] if ring["state"] == "running"]


def indexes(link: Pair) -> list[int]:
    """Where the rings of both queue pairs stand."""
    (status,) = link.slave.agents()
    return [ring["index"] for ring in status["rings"][:4]]


def test_next_agents_go_on_where_one_was_killed_under_load(link: Pair) -> None:
    """The kernel lets the rings go with the agent's descriptors."""
    with served(link, "vfio") as agent, flow(link):
        agent.send(signal.SIGKILL)
        assert agent.wait(10) is not None
        assert "vhost-" not in link.slave.run("ps").stdout
    for plane in ("ring", "vhost-net"):
        with link.slave.agent("vfio", "--data-plane", plane):
            link.assert_packets_cross()
    assert_drivers_are_content(link)


def test_driver_comes_back_after_a_reload_and_a_reboot_under_load(link: Pair) -> None:
    with served(link, "vfio"):
        with flow(link):
            link.master.run("modprobe -r virtio_net", timeout=60)
            link.slave.wait_for(NO_CARRIER)
            link.master.run("modprobe virtio_net")
        link.assert_packets_cross()
        link.master.qmp("stop")
        link.master.qmp("cont")
        link.assert_packets_cross()
        with traffic.pinging(
            link.slave, MASTER_ADDRESS, ends_without_link=True
        ) as pings:
            pings.wait_answers(20)
            link.master.reboot()
            link.master.configure()
            pings.wait_answers(20)
        link.assert_packets_cross()
    assert_drivers_are_content(link)


def test_kernel_lets_the_rings_go_when_the_daemon_and_its_keeper_are_killed(
    link: Pair,
) -> None:
    """Last: the slave VM is connected to the daemon that was killed."""
    with served(link, "vfio") as agent, flow(link):
        daemon_processes.send(link.daemon.pid, signal.SIGKILL)
        agent.wait_said("the daemon has been silent for")
        assert running(link) == []
        link.slave.run(NO_CARRIER)
    assert_drivers_are_content(link)
