# SPDX-License-Identifier: Apache-2.0
"""A daemon that was started again, and has no connection to our device."""

from dataclasses import replace

import pytest

from tests.fakes.bar import MEMORY, pair
from tests.unit.guest.bench import Bench
from vhostpci_guest.serve.daemon_connection import PATIENCE_TICKS

LINE = "has no connection to this device"


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if LINE in line]


def daemon_state(bench: Bench) -> object:
    assert bench.link is not None
    return bench.link.status()["daemon"]


def test_device_that_the_daemon_does_not_know_is_reported_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.publish(slave=False)
    bench.ticks(PATIENCE_TICKS - 1)
    assert (lines(caplog), daemon_state(bench)) == ([], "alive")
    bench.ticks(3 * PATIENCE_TICKS)
    (line,) = lines(caplog)
    assert "until the device is unplugged and plugged again, or this VM is" in line
    assert daemon_state(bench) == "not connected to this device"
    assert not bench.port.carrier


def test_device_that_the_daemon_learns_of_in_time_is_not_reported(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """An agent as a process reads the metadata before the daemon knows of it."""
    bench.publish(slave=False)
    bench.ticks(PATIENCE_TICKS - 1)
    bench.publish(*pair(2), slave=True)
    bench.ticks(3 * PATIENCE_TICKS)
    assert (lines(caplog), daemon_state(bench)) == ([], "alive")


def test_each_loss_of_the_connection_is_reported(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    for count in (1, 2):
        bench.publish(slave=False)
        bench.ticks(2 * PATIENCE_TICKS)
        assert len(lines(caplog)) == count
        bench.publish(slave=True)
        bench.ticks(1)


@pytest.mark.parametrize("beats", range(5))
def test_daemon_that_ends_is_reported_as_silent_alone(
    bench: Bench, caplog: pytest.LogCaptureFixture, beats: int
) -> None:
    """It closes its connection first, and may beat once more."""
    bench.publish(slave=False)
    bench.ticks(beats)
    bench.ticks(4 * PATIENCE_TICKS, daemon=False)
    assert (lines(caplog), daemon_state(bench)) == ([], "silent")


def test_metadata_that_cannot_be_understood_is_no_lost_connection(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.publish(regions=(replace(MEMORY, window=9),))
    bench.ticks(3 * PATIENCE_TICKS)
    assert (lines(caplog), daemon_state(bench)) == ([], "alive")
