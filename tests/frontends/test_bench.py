# SPDX-License-Identifier: Apache-2.0
"""The benchmarks that need no VM work with the ring as it is."""

import json
from pathlib import Path

import pytest

from tests.bench import front_ends, passes, responders
from tests.bench.card import linked
from tests.bench.parts import bulk, latency, planes, relay, ring, taken
from tests.bench.plan import Plan
from tests.bench.requests import PORT, client
from tests.fakes.frontend import NO_FEATURES
from tests.fakes.netns import private_network
from tests.process.lab import SLAVE_TAP
from tests.process.program import Program
from tests.vm.netns import Namespace

pytestmark = pytest.mark.frontends


@pytest.mark.parametrize("case", bulk.CASES, ids=lambda case: case.name)
def test_packets_go_through_the_ring_and_past_it(
    tmp_path: Path, case: bulk.Case
) -> None:
    found = bulk.rounds(bulk.build(tmp_path), case, 3)
    assert found.shape == (3, 2)
    assert found.min() > 0


def test_passes_of_long_packets_end_before_the_ring_is_empty() -> None:
    with passes.quiet_tap() as tap:
        long, short = (passes.measure(tap, length) for length in (65_000, 64))
    assert long.count > short.count == 1
    assert min(long.longest, long.packet, short.packet) > 0


def test_one_driver_works_with_both_sides_in_turn(tmp_path: Path) -> None:
    program = ring.build(tmp_path)
    for path in ("split mergeable", "split inorder non-mergeable", "packed mergeable"):
        output = ring.run(program, ring.PATHS[path], Plan(quick=True))
        assert output.line > 0
        assert output.version.startswith("DPDK")
        found = list(ring.figures(path, output))
        assert len(found) == 4
        assert {len(figure.ours_runs) for figure in found} == {5}


@pytest.mark.parametrize("spin", [False, True])
def test_requests_are_answered_behind_a_tap_and_by_a_program(
    tmp_path: Path, spin: bool
) -> None:
    programs = latency.build(tmp_path)
    with responders.alone(programs, tmp_path / "log", spin=spin) as send:
        assert send(100, 0.1).loss < 1
    with Namespace() as namespace:
        namespace.run("ip link set lo up")
        argv = [*namespace.prefix, str(programs.echo), "udp", str(PORT)]
        echo = Program(argv, tmp_path / "echo.log")
        try:
            echo.wait_log("ready")
            sample = client(programs.client, namespace.prefix, "127.0.0.1", 100, 0.1)
        finally:
            echo.close()
    assert (sample.sent, sample.loss < 1) == (10, True)


def test_segments_cross_as_one_packet_with_uso(tmp_path: Path) -> None:
    with linked(tmp_path / "uso", without=NO_FEATURES) as link:
        for from_master, counts in ((True, "rx"), (False, "tx")):
            assert link.gigabits(0.05, from_master=from_master) > 0
            shown = link.slave.output("ip", "-j", "-s", "link", "show", SLAVE_TAP)
            (interface,) = json.loads(shown)
            counted = interface["stats64"][counts]
            assert counted["bytes"] / counted["packets"] > 10_000


def test_packets_of_a_real_front_end_cost_ours_and_dpdk_something(
    tmp_path: Path,
) -> None:
    with private_network(), front_ends.both(tmp_path) as sides:
        client = latency.build(tmp_path).client
        for side in sides:
            assert side.sent(0.05) > 0
            side.forward("rxonly", 64)
            assert side.received(client, 0.05) > 0


def test_both_data_planes_have_their_turn(tmp_path: Path) -> None:
    with planes.both(tmp_path) as sides:
        for side in sides:
            assert side.sent(0.05) > 0
            side.forward("icmpecho", 64)
            assert planes.round_trip(side, 20) > 0


def test_signals_arrive_on_every_way() -> None:
    for flood in (False, True):
        with relay.opened(flood=flood) as ways:
            found = ways.run(relay.TURN)
        assert {len(way.took) for way in found.values()} == {relay.TURN}
        assert all(way.used > 0 for way in found.values() if way.relay)


def test_only_the_peers_masters_need_their_daemons() -> None:
    """Else ours, and what it is compared with, would be the same."""
    with taken.labs() as labs:
        for lab in labs:
            assert taken.pinged(lab, 20).trip > 0
        rings = [lab.status()["rings"] for lab in labs]
        tasks = [Path(f"/proc/{lab.daemon.serving}/task") for lab in labs]
        _, in_c, in_python = (len(list(task.iterdir())) for task in tasks)
    assert [[ring["kick_direct"] for ring in of] for of in rings] == [
        [True, True],
        [False, False],
        [False, False],
    ]
    ours, *peers = (sum(ring["calls_relayed"] for ring in of) for of in rings)
    assert ours == 0
    assert min(peers) > 0
    assert in_c > in_python
