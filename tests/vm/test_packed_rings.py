# SPDX-License-Identifier: Apache-2.0
"""A master whose card has packed rings: traffic, and deaths in the middle of it.

  master             vhostpci-host            slave
virtio-net,packed=on --- vhost-user, ivshmem --- vhostpci-guest -- TAP
"""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm import pair, traffic
from tests.vm.harness import Vm
from tests.vm.pair import MASTER_ADDRESS, SLAVE_ADDRESS, Pair

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def booted(logs: Path) -> Iterator[Pair]:
    with pair.booted(logs / "packed", packed=True) as link:
        yield link


def assert_packed(link: Pair) -> None:
    status = link.daemon.status()
    assert "F_RING_PACKED" in status["master"]["features"]
    assert {ring["format"] for ring in status["rings"]} == {"packed"}
    (agent,) = link.slave.agents()
    assert {ring["format"] for ring in agent["rings"]} == {"packed"}
    assert {ring["state"] for ring in agent["rings"]} == {"running"}


def assert_tcp_flows(link: Pair) -> None:
    with traffic.iperf_server(link.slave):
        assert traffic.tcp(link.master, SLAVE_ADDRESS, seconds=2) > 1
    with traffic.iperf_server(link.master):
        assert traffic.tcp(link.slave, MASTER_ADDRESS, seconds=2) > 1


def test_packets_cross_and_the_driver_comes_back(booted: Pair) -> None:
    with booted.slave.agent("vfio"):
        booted.assert_packets_cross()
        assert_packed(booted)
        assert_tcp_flows(booted)
        booted.master.reload_driver()
        booted.assert_packets_cross()
        booted.master.qmp("stop")
        booted.master.qmp("cont")
        booted.assert_packets_cross()
        booted.master.reboot()
        booted.assert_packets_cross()
        assert_packed(booted)


def test_next_agent_goes_on_where_one_was_killed_under_load(booted: Pair) -> None:
    """The master's driver goes on as well: nothing tells it to start again."""
    ends: tuple[tuple[Vm, Vm, str], ...] = (
        (booted.master, booted.slave, SLAVE_ADDRESS),
        (booted.slave, booted.master, MASTER_ADDRESS),
    )
    for source, sink, address in ends:
        with booted.slave.agent("vfio") as agent:
            booted.assert_packets_cross()
            with traffic.iperf_server(sink):
                client = source.spawn(
                    f"exec iperf3 -c {address} -t 60 --connect-timeout 5000"
                )
                booted.master.wait_for(
                    "test $(cat /sys/class/net/eth0/statistics/tx_packets) -gt 500"
                )
                agent.send(signal.SIGKILL)
                client.stop()
        with booted.slave.agent("vfio"):
            booted.assert_packets_cross()
            assert_packed(booted)
