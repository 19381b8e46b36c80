# SPDX-License-Identifier: Apache-2.0
"""What a link refuses: impossible metadata, devices without it, missing vectors."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.bar import (
    MEMORY,
    FakeDevice,
    FakeWindows,
    pair,
)
from tests.fakes.plane import FakePort
from tests.unit.guest.bench import Bench
from vhostpci_guest.errors import Unusable
from vhostpci_guest.serve.link import FAST, Link
from vhostpci_shared import metadata as md
from vhostpci_shared.metadata import AgentState
from vhostpci_shared.wire import ProtocolError


def test_impossible_metadata_stops_all_rings_until_it_changes_and_is_logged_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.publish(*pair(2))
    for _ in range(2):
        bad = bench.publish(*pair(2), regions=(replace(MEMORY, window=9),))
    assert bench.running == set()
    assert not bench.port.carrier
    assert bench.daemon.agent().state is AgentState.FAILED
    assert "window 9" in bench.daemon.agent().message
    assert bench.daemon.agent().generation == bad
    assert caplog.text.count("window 9") == 1
    bench.publish(*pair(3))
    assert bench.running == {0, 1}
    assert bench.daemon.agent().state is AgentState.READY
    assert bench.daemon.agent().message == ""


@pytest.mark.parametrize(
    ("version", "older"), [(0, "update vhostpci-host"), (2, "update vhostpci-guest")]
)
def test_daemon_of_another_version_is_told_which_side_to_update(
    version: int, older: str
) -> None:
    bench = Bench()
    bench.daemon.publish(*pair(2))
    at = bench.device.window.size - md.SIZE + 8
    bench.device.window.view[at : at + 4] = version.to_bytes(4, "little")
    with pytest.raises(md.OtherVersion, match=older):
        bench.attach()
    assert bench.daemon.agent().state is AgentState.FAILED
    assert older in bench.daemon.agent().message
    assert bench.device.rung == [(md.DAEMON_PEER, 0)]
    bench.close()


def test_later_minor_version_is_served(bench: Bench) -> None:
    """New fields in reserved places, and new flags, are ignored."""
    start = bench.device.window.size - md.SIZE
    for at in (0x20, 0xA0, md.RINGS + 0x34, md.RINGS + 64 * 63 + 0x30):
        bench.device.window.view[start + at] = 0xFF
    flags = start + md.DEVICE + 0x10 + 3
    bench.daemon.publish(*pair(2))
    bench.device.window.view[flags] = 0xFF
    bench.look()
    assert bench.running == {0, 1}


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, md.DAEMON_END - 1), st.binary(min_size=1, max_size=64)
        ),
        max_size=8,
    )
)
def test_any_bytes_in_the_metadata_leave_the_link_alive(
    writes: list[tuple[int, bytes]],
) -> None:
    bench = Bench()
    bench.daemon.publish()
    bench.attach()
    bench.publish(*pair(2))
    view = bench.device.window.view[-md.SIZE :]
    for at, data in writes:
        data = data[: md.DAEMON_END - at]
        view[at : at + len(data)] = data
        bench.ticks(1)
    view.release()
    bench.daemon.metadata.format()
    bench.publish(*pair(3))
    assert bench.running == {0, 1}
    bench.close()


def test_metadata_that_is_being_written_is_looked_at_again_soon(bench: Bench) -> None:
    assert bench.link is not None
    bench.publish(*pair(2))
    bench.daemon.metadata.format()  # odd from here on
    bench.look()
    assert bench.running == {0, 1}
    assert bench.link.interval == FAST


def test_metadata_that_is_written_for_ever_costs_little_and_stops_no_ring(
    bench: Bench,
) -> None:
    """A daemon that lives, and whose generation never becomes even."""
    assert bench.link is not None
    bench.publish(*pair(2))
    bench.daemon.metadata.format()
    bench.ticks(100)
    assert bench.running == {0, 1}
    assert bench.link.interval == FAST
    assert bench.link.status()["state"] == "ready"


def test_device_without_metadata_is_refused() -> None:
    bench = Bench()
    bench.device.window.view[-md.SIZE :] = bytes(md.SIZE)
    with pytest.raises(ProtocolError, match="no vhostpci metadata"):
        bench.attach()
    bench.close()


def test_window_too_small_for_metadata_is_refused() -> None:
    device = FakeDevice(size=0x1000)
    with pytest.raises(ProtocolError, match="smaller than the metadata"):
        Link(device, FakePort(), FakeWindows())
    device.close()


def test_device_that_is_only_a_window_is_refused() -> None:
    device = FakeDevice(window=3)
    with pytest.raises(Unusable, match="IVPosition 3"):
        Link(device, FakePort(), FakeWindows())
    device.close()


def test_too_few_vectors_are_reported_to_the_daemon_and_end_the_link() -> None:
    bench = Bench(vectors=2)
    bench.daemon.publish()
    bench.attach()
    bench.ticks(1, daemon=False)
    assert bench.daemon.agent().state is AgentState.NONE
    with pytest.raises(Unusable, match="vectors=3"):
        bench.look()
    bench.close()


def test_wish_for_more_vectors_does_not_end_a_link_that_served(bench: Bench) -> None:
    """It is the daemon's mistake, and the agent serves other devices."""
    bench.publish(*pair(2))
    bench.publish(*pair(3), vectors=64)
    assert bench.daemon.agent().state is AgentState.FAILED
    assert "needs 64" in bench.daemon.agent().message
    bench.publish(*pair(4))
    assert bench.running == {0, 1}


def test_failure_stays_in_the_metadata_when_the_agent_ends() -> None:
    bench = Bench(vectors=2)
    bench.daemon.publish()
    link = bench.attach()
    with pytest.raises(Unusable):
        bench.look()
    link.close()
    bench.link = None
    assert bench.daemon.agent().state is AgentState.FAILED
    assert "vectors=3" in bench.daemon.agent().message
    assert bench.daemon.poked()
    bench.close()


def test_link_waits_for_vectors_that_the_server_has_yet_to_send() -> None:
    bench = Bench(vectors=3)
    bench.daemon.publish(*pair(2))
    bench.device.vector_count, bench.device.settled = 1, False
    bench.attach()
    bench.look()
    assert bench.daemon.agent().generation == 0
    bench.device.vector_count = 3
    bench.look()
    assert bench.running == {0, 1}
    bench.close()


def test_vectors_that_arrive_late_are_written_into_the_metadata(bench: Bench) -> None:
    bench.device.vector_count = 17
    bench.ticks(1)
    assert bench.daemon.agent().vectors == 17
