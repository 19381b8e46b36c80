# SPDX-License-Identifier: Apache-2.0
"""Packets between two network stacks, through the real daemon and the real agent."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fakes.netns import private_network
from tests.fakes.udp_bursts import DATAGRAMS, receive, send
from tests.pings import ping, unbroken
from tests.process.lab import MASTER_ADDRESS, SLAVE_ADDRESS, Lab
from tests.process.program import run
from tests.process.shared import Shared
from tests.waiting import wait_for, when_still
from vhostpci_guest.serve.heartbeat import TICK
from vhostpci_shared.virtio import Feature

pytestmark = pytest.mark.process

FEATURES = {
    "all features": Feature(0),
    "no EVENT_IDX": Feature.F_EVENT_IDX,
    "no offloads": Feature.NET_F_GUEST_CSUM
    | Feature.NET_F_GUEST_TSO4
    | Feature.NET_F_GUEST_TSO6
    | Feature.NET_F_GUEST_ECN,
    "a chain of pages for each packet": Feature.NET_F_MRG_RXBUF,
    "legacy, mergeable": Feature.F_VERSION_1,
    "legacy, a chain of pages": Feature.F_VERSION_1 | Feature.NET_F_MRG_RXBUF,
}


@pytest.fixture(scope="class", params=[*FEATURES.values()], ids=[*FEATURES])
def started(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shared[Lab]]:
    """One lab for all tests of a class."""
    with Shared(
        lambda: linked(tmp_path_factory.mktemp("lab"), request.param),
        lambda lab: lab.unchanged(),
    ) as started:
        yield started


@contextmanager
def linked(directory: Path, without: Feature) -> Iterator[Lab]:
    """Start a lab with packets crossing between both sides."""
    with private_network(), Lab(directory) as lab:
        lab.start_daemon()
        lab.start_agent()
        lab.start_master().load(without=without)
        lab.wait_carrier("UP")
        lab.wait_state("running")
        yield lab


def iperf(lab: Lab, *, from_master: bool) -> float:
    """Return Mbit/s of two seconds of TCP."""
    source = () if from_master else tuple(lab.slave.prefix)
    sink = tuple(lab.slave.prefix) if from_master else ()
    address = SLAVE_ADDRESS if from_master else MASTER_ADDRESS
    server = lab.start_server([*sink, "iperf3", "-s", "-1", "--forceflush"])
    server.wait_log("listening")
    try:
        done = run(*source, "iperf3", "-J", "-t", "2", "-c", address)
    finally:
        # The link may go before the client's last message has reached the server, which
        # would wait for that without end.
        server.close()
    report = json.loads(done.stdout)
    assert "error" not in report, report["error"]
    return float(report["end"]["sum_received"]["bits_per_second"]) / 1e6


def lost_datagrams(lab: Lab, *, from_master: bool) -> int:
    """Send bursts of datagrams; return how many did not come."""
    source = () if from_master else tuple(lab.slave.prefix)
    sink = tuple(lab.slave.prefix) if from_master else ()
    address = SLAVE_ADDRESS if from_master else MASTER_ADDRESS
    server = lab.start_server([*sink, sys.executable, *receive()])
    server.wait_log("ready")
    run(*source, sys.executable, *send(address))
    assert server.wait() == 0
    return int(server.log.split()[-1])


class TestOneSession:
    """Tests that leave the session as they find it, so one lab serves them all."""

    def test_every_ping_comes_back(self, shared: Lab) -> None:
        assert shared.ping_from_master(20) == 20
        assert shared.ping_from_slave(20) == 20

    def test_big_pings_come_back_in_many_buffers(self, shared: Lab) -> None:
        assert shared.ping_from_master(10, "-s", "60000") == 10
        assert shared.ping_from_slave(10, "-s", "60000") == 10

    @pytest.mark.parametrize("from_master", [True, False], ids=["up", "down"])
    def test_tcp_flows_with_correct_checksums(
        self, shared: Lab, from_master: bool
    ) -> None:
        """TCP's checksums are the check: a segment with a wrong byte is dropped."""
        assert iperf(shared, from_master=from_master) > 1.0

    @pytest.mark.parametrize("from_master", [True, False], ids=["up", "down"])
    def test_udp_segments_cross_without_a_loss(
        self, shared: Lab, from_master: bool
    ) -> None:
        before = all_counted(shared)
        assert lost_datagrams(shared, from_master=from_master) == 0
        assert shared.master is not None
        way = Feature.NET_F_HOST_USO if from_master else Feature.NET_F_GUEST_USO4
        needs = Feature.NET_F_CSUM if from_master else Feature.NET_F_GUEST_CSUM
        if all(one in shared.master.frontend.features for one in (way, needs)):
            assert all_counted(shared) - before < DATAGRAMS / 5

    def test_status_of_both_sides_counts_the_packets(self, shared: Lab) -> None:
        before = counted(shared)
        shared.ping_from_master(20)
        wait_for(
            lambda: all(
                now >= then + 20
                for now, then in zip(counted(shared), before, strict=True)
            ),
            lambda: f"20 packets more in each ring than {before}",
        )


def counted(lab: Lab) -> list[int]:
    """Return how many packets the agent says that it moved, ring by ring."""
    rings = lab.status()["rings"]
    return [ring["agent"]["packets"] if ring["agent"] else 0 for ring in rings]


def all_counted(lab: Lab) -> int:
    """Return how many packets it moved in all, once it has told of all of them."""
    return when_still(lambda: sum(counted(lab)), 3 * TICK)


def test_no_packet_is_lost_while_another_device_is_removed_and_added(lab: Lab) -> None:
    daemon = lab.start_fleet("net0", "net1")
    lab.start_agent()
    lab.start_master().load()
    lab.wait_carrier("UP")
    wait_for(lambda: lab.ping_from_master(1) == 1, "a first ping comes back")
    flood = lab.start_server([*ping(400, "-i", "0.01"), SLAVE_ADDRESS])
    for _ in range(3):
        for words in (["remove", "net1"], ["add", "net1", "--memory", "16M"]):
            assert lab.run_host(*words).returncode == 0
    assert flood.wait() == 0
    assert unbroken(flood.log) == 400
    assert daemon.process.poll() is None
