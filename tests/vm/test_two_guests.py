# SPDX-License-Identifier: Apache-2.0
"""Packets between two VMs, for each way in which the agent binds its device.

  master            vhostpci-host            slave
virtio-net ------ vhost-user, ivshmem ------ vhostpci-guest --bind ... -- TAP
10.77.0.1                                    10.77.0.2
"""

import pytest
from tests.vm import traffic
from tests.vm.pair import MASTER_ADDRESS, SLAVE_ADDRESS, TAP, Pair

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

each_bind = pytest.mark.parametrize("link", ["vfio", "uio", "sysfs"], indirect=True)


@each_bind
def test_every_ping_comes_back_both_ways(link: Pair) -> None:
    ping = link.ping_both_ways(count=20)
    assert ping.received == ping.sent == 40


@each_bind
def test_tcp_flows_both_ways(link: Pair) -> None:
    with traffic.iperf_server(link.slave):
        assert traffic.tcp(link.master, SLAVE_ADDRESS, seconds=3) > 1
    with traffic.iperf_server(link.master):
        assert traffic.tcp(link.slave, MASTER_ADDRESS, seconds=3) > 1


def test_udp_arrives(link: Pair) -> None:
    with traffic.iperf_server(link.slave):
        assert traffic.udp(link.master, SLAVE_ADDRESS, seconds=2, rate="20M") > 1


@pytest.mark.parametrize("size", [0, 1, 56, 1472, 1473, 8000, 60000])
def test_packets_of_any_size_cross_unharmed(link: Pair, size: int) -> None:
    # -p fills the packet with a pattern; ping says "wrong data byte" if it changed.
    result = link.master.run(f"ping -n -c 3 -i 0.1 -p a5 -s {size} {SLAVE_ADDRESS}")
    assert " 0% packet loss" in result.stdout
    assert "wrong data byte" not in result.stdout


def test_a_file_arrives_as_it_was_sent(link: Pair) -> None:
    link.master.run("dd if=/dev/urandom of=/tmp/sent bs=1M count=16")
    listener = link.slave.spawn("exec busybox nc -l -p 9000 > /tmp/received")
    link.slave.wait_for("grep -q ':2328 .* 0A ' /proc/net/tcp /proc/net/tcp6")
    link.master.run(f"busybox nc -w 5 {SLAVE_ADDRESS} 9000 < /tmp/sent", timeout=60)
    assert listener.wait(20) == 0
    sums = [
        vm.run(f"sha256sum < /tmp/{name}", timeout=60).stdout
        for vm, name in ((link.master, "sent"), (link.slave, "received"))
    ]
    assert sums[0] == sums[1]


def test_the_device_is_put_back_when_the_agent_ends(booted: Pair) -> None:
    driver = "readlink /sys/bus/pci/devices/*/driver | sort"
    before = booted.slave.run(driver).stdout
    with booted.slave.agent("vfio") as agent:
        assert booted.slave.run(driver).stdout != before
        assert agent.stop() == 0
    assert booted.slave.run(driver).stdout == before
    assert booted.slave.run(f"ip link show {TAP}", check=False).rc != 0
