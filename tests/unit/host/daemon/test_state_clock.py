# SPDX-License-Identifier: Apache-2.0
"""Since when a device is in its state."""

from vhostpci_host.daemon.state_clock import StateClock


def test_state_has_its_time_since_it_changed() -> None:
    now = 5.0
    clock = StateClock(fresh=True, now=lambda: now)
    assert clock.look("no master") == 5.0
    now = 7.0
    assert clock.look("no master") == 5.0
    assert clock.look("running") == 7.0


def test_nothing_is_known_of_a_state_that_an_earlier_daemon_has_left() -> None:
    clock = StateClock(fresh=False, now=lambda: 5.0)
    assert clock.look("running") is None
    assert clock.look("running") is None
    assert clock.look("no agent") == 5.0
