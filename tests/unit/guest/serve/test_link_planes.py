# SPDX-License-Identifier: Apache-2.0
"""A link whose data plane waits, lacks features, or takes a while to stop a ring."""

import errno
import fcntl
import os
import resource
from collections.abc import Iterator, Set
from contextlib import contextmanager
from typing import NoReturn

import pytest

from tests.fakes.bar import FEATURES, pair, ring
from tests.unit.guest.bench import Bench
from vhostpci_guest.dataplane.ring_features import SERVES
from vhostpci_guest.serve.heartbeat import SILENT_TICKS
from vhostpci_host.features import OFFERED
from vhostpci_shared.metadata import (
    DAEMON_PEER,
    METADATA_VECTOR,
    AgentFlag,
    AgentRingState,
    AgentState,
)
from vhostpci_shared.virtio import Feature

LACKS = Feature.NET_F_HOST_TSO4


def without_back_end(bench: Bench) -> None:
    bench.publish()
    bench.plane.waiting = "no back-end at /run/a.sock"


def test_ring_serves_all_that_the_daemon_offers() -> None:
    assert OFFERED & ~SERVES == Feature.F_PROTOCOL_FEATURES


def test_daemon_reads_what_the_data_plane_serves(bench: Bench) -> None:
    bench.publish(*pair(2))
    agent = bench.daemon.agent()
    assert (agent.data_plane, agent.offers) == ("ring", int(SERVES))
    assert AgentFlag.OFFERS in agent.flags


def test_no_ring_starts_while_there_is_no_back_end(bench: Bench) -> None:
    without_back_end(bench)
    generation = bench.publish(*pair(2))
    agent = bench.daemon.agent()
    assert bench.running == set()
    assert agent.generation == generation
    assert agent.state is AgentState.WAITING
    assert agent.message == "no back-end at /run/a.sock"


def test_rings_start_once_there_is_a_back_end(bench: Bench) -> None:
    without_back_end(bench)
    bench.publish(*pair(2))
    bench.daemon.poked()
    bench.plane.waiting = ""
    bench.look()
    assert bench.running == {0, 1}
    assert bench.daemon.agent().state is AgentState.READY
    assert bench.daemon.agent().message == ""
    assert bench.daemon.poked()


@pytest.mark.parametrize("start", ["back-end", "first answer"])
def test_ring_that_was_taken_back_before_we_said_ready_does_not_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    """The daemon has not waited for us: it saw that we ran no ring."""
    without_back_end(bench)
    bench.publish(*([] if start == "first answer" else pair(2)))

    def publish(peer: int, vector: int) -> None:
        assert (peer, vector) == (DAEMON_PEER, METADATA_VECTOR)
        if bench.daemon.agent().state is AgentState.READY:
            monkeypatch.undo()
            bench.daemon.publish()

    monkeypatch.setattr(bench.device, "ring", publish)
    bench.plane.waiting = ""
    if start == "first answer":
        bench.publish(*pair(2))
    bench.look()
    assert bench.plane.starts == []
    assert bench.running == set()


def test_rings_of_a_back_end_that_died_go_on_at_the_used_index(bench: Bench) -> None:
    bench.publish(*pair(2))
    bench.plane.move(1, 5)
    bench.plane.waiting = "no back-end at /run/a.sock"
    for index in (0, 1):
        bench.plane.lose(index)
    bench.look()
    assert bench.daemon.agent().state is AgentState.WAITING
    assert bench.daemon.ring(1).state is AgentRingState.STOPPED
    # What it did after we heard of it last.
    bench.set_used(1, 9)
    bench.plane.waiting = ""
    bench.look()
    assert bench.plane.starts[-2:] == [(0, 0), (1, 9)]


def test_ring_without_a_feature_does_not_start_and_its_name_is_told(
    bench: Bench,
) -> None:
    bench.publish()
    bench.plane.offers = int(SERVES & ~LACKS)
    bench.publish(*pair(2), features=FEATURES | LACKS)
    agent = bench.daemon.agent()
    assert bench.running == set()
    assert agent.state is AgentState.MISMATCH
    assert agent.message.endswith("lacking: NET_F_HOST_TSO4")
    assert agent.offers == int(SERVES & ~LACKS)
    bench.ticks(3)
    assert not bench.port.carrier


def test_driver_that_uses_less_ends_a_mismatch(bench: Bench) -> None:
    bench.publish()
    bench.plane.offers = int(SERVES & ~LACKS)
    bench.publish(*pair(2), features=FEATURES | LACKS)
    bench.publish(*pair(3), features=FEATURES)
    assert bench.running == {0, 1}
    assert bench.daemon.agent().state is AgentState.READY


@pytest.mark.parametrize("feature", [Feature.NET_F_MAC, Feature.NET_F_MTU])
def test_feature_that_no_data_plane_has_a_part_in_lacks_nowhere(
    bench: Bench, feature: Feature
) -> None:
    bench.publish()
    bench.plane.offers = FEATURES
    bench.publish(*pair(2), features=FEATURES | feature)
    assert bench.running == {0, 1}


def test_daemon_has_its_answer_once_a_slow_ring_has_stopped(bench: Bench) -> None:
    before = bench.publish(*pair(2))
    bench.plane.slow = {1}
    after = bench.publish(ring(session=2), ring(1, session=3, flags=0))
    assert bench.daemon.agent().generation == before
    bench.look()
    assert bench.daemon.agent().generation == before
    bench.plane.slow.clear()
    bench.plane.happen()
    bench.look()
    assert bench.daemon.agent().generation == after
    assert bench.daemon.ring(1).state is AgentRingState.STOPPED


def test_ring_that_is_stopping_stops_even_if_it_is_wanted_again(bench: Bench) -> None:
    bench.publish(*pair(2))
    bench.plane.slow = {1}
    bench.publish(ring(session=2), ring(1, session=3, flags=0))
    bench.publish(*pair(2))
    assert bench.plane.starts == [(0, 0), (1, 0)]
    bench.plane.slow.clear()
    bench.look()
    assert bench.plane.stops == [1]
    assert bench.plane.starts[2:] == [(1, 0)]


def test_slow_ring_stops_while_the_daemon_is_silent(bench: Bench) -> None:
    bench.publish(*pair(2))
    bench.plane.slow = {1}
    bench.ticks(SILENT_TICKS + 1, daemon=False)
    assert bench.running == {1}
    bench.plane.slow.clear()
    assert bench.link is not None
    bench.link.look()
    assert bench.running == set()


@pytest.mark.parametrize("patience", [2, 3])
def test_data_plane_says_how_long_a_silent_daemon_is_trusted(
    bench: Bench, patience: int
) -> None:
    bench.publish()
    bench.plane.silent_ticks = patience
    bench.publish(*pair(2))
    bench.ticks(patience - 1, daemon=False)
    assert bench.running == {0, 1}
    bench.ticks(1, daemon=False)
    assert bench.running == set()


def test_silent_daemon_is_trusted_longer_if_its_connections_are_kept(
    bench: Bench,
) -> None:
    bench.publish()
    bench.plane.silent_ticks = 2
    bench.publish(*pair(2), kept=True)
    bench.ticks(SILENT_TICKS - 1, daemon=False)
    assert bench.running == {0, 1}
    bench.ticks(1, daemon=False)
    assert bench.running == set()


def test_agent_that_ends_waits_for_a_slow_ring(bench: Bench) -> None:
    bench.publish(*pair(2))
    bench.plane.slow = {1}
    bench.plane.when_looked = bench.plane.slow.clear
    assert bench.link is not None
    bench.link.close()
    bench.link = None
    assert sorted(bench.plane.stops) == [0, 1]


def test_agent_with_many_descriptors_waits_for_a_slow_ring(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """select() takes none above 1023."""
    bench.publish(*pair(2))
    bench.plane.slow = {1}
    bench.plane.when_looked = bench.plane.slow.clear
    assert bench.link is not None
    with descriptor_above_1023(bench.plane.fileno()) as fd:
        monkeypatch.setattr(bench.plane, "fileno", lambda: fd)
        bench.link.close()
    bench.link = None
    assert sorted(bench.plane.stops) == [0, 1]


@contextmanager
def descriptor_above_1023(fd: int) -> Iterator[int]:
    """Give a copy of a descriptor."""
    soft, hard = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard <= 1024:
        pytest.skip("needs a limit of more than 1024 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1025), hard))
    copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 1024)
    try:
        yield copy
    finally:
        os.close(copy)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_windows_stay_until_the_data_plane_is_closed_also_if_a_stop_fails(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its threads would read and write memory that is unmapped."""
    bench.publish(*pair(2))
    closed_at_release = []

    def fail(what: str, index: int) -> NoReturn:
        raise OSError(errno.EIO, f"cannot {what} ring {index}")

    def want(numbers: Set[int]) -> None:
        if not numbers:
            closed_at_release.append(bench.plane.closed)

    bench.plane.watch = fail
    monkeypatch.setattr(bench.windows, "want", want)
    assert bench.link is not None
    with pytest.raises(OSError, match="cannot stop ring"):
        bench.link.close()
    bench.link = None
    assert closed_at_release == [True]
    assert bench.daemon.agent().state is AgentState.NONE
