# SPDX-License-Identifier: Apache-2.0
"""PciWatch binds the windows that a link wants, and gives them back."""

import pytest

from tests.unit.guest.pci.watched_vm import A, B, C, W, WatchedVm
from vhostpci_guest.pci.functions import RETRY


def test_window_is_bound_only_while_it_is_wanted(machine: WatchedVm) -> None:
    machine.plug(A)
    machine.plug(B, W)
    watch = machine.start()
    assert machine.served == [A]
    assert not machine.enabled(B)
    assert watch.interval is None
    windows = machine.finder()
    windows.want({W})
    assert watch.interval == 0
    machine.look()
    window = windows.find(W)
    assert window is not None
    assert window.id == W
    windows.want(set())
    assert windows.find(W) is None
    machine.look()
    assert not machine.enabled(B)


def test_window_may_be_plugged_after_it_is_wanted(machine: WatchedVm) -> None:
    machine.plug(A)
    machine.start()
    windows = machine.finder()
    windows.want({W})
    machine.look()
    assert windows.find(W) is None
    machine.plug(B, W)
    machine.look()
    assert windows.find(W) is not None
    windows.want(set())


def test_released_window_may_be_wanted_again(machine: WatchedVm) -> None:
    machine.plug(A)
    machine.plug(B, W)
    machine.start()
    windows = machine.finder()
    for _ in range(2):
        windows.want({W})
        machine.look()
        assert windows.find(W) is not None
        windows.want(set())


def test_unplugged_window_stays_mapped_until_its_link_releases_it(
    machine: WatchedVm,
) -> None:
    machine.plug(A)
    machine.plug(B, W)
    machine.start()
    windows = machine.finder()
    windows.want({W})
    machine.look()
    window = windows.find(W)
    assert window is not None
    machine.unplug(B)
    machine.look()
    assert windows.find(W) is None
    assert window.view[0] == 0
    windows.want({W})
    machine.look()
    with pytest.raises(ValueError, match="released"):
        _ = window.view[0]
    windows.want(set())


def test_window_of_two_links_stays_until_both_release_it(machine: WatchedVm) -> None:
    machine.plug(A)
    machine.plug(B, W)
    machine.start()
    links = [machine.finder(), machine.finder()]
    for windows in links:
        windows.want({W})
    machine.look()
    window = links[0].find(W)
    assert window is not None
    links[0].want(set())
    assert links[1].find(W) is window
    machine.unplug(B)
    machine.look()
    assert window.view[0] == 0
    links[1].want(set())
    machine.look()
    with pytest.raises(ValueError, match="released"):
        _ = window.view[0]


def test_unplugged_window_of_two_links_stays_mapped_until_both_release_it(
    machine: WatchedVm,
) -> None:
    machine.plug(A)
    machine.plug(B, W)
    machine.start()
    links = [machine.finder(), machine.finder()]
    for windows in links:
        windows.want({W})
    machine.look()
    window = links[0].find(W)
    assert window is not None
    machine.unplug(B)
    machine.look()
    links[0].want(set())
    machine.look()
    assert window.view[0] == 0
    links[1].want(set())
    machine.look()
    with pytest.raises(ValueError, match="released"):
        _ = window.view[0]


def test_two_windows_with_one_ivposition_are_both_refused(
    machine: WatchedVm, caplog: pytest.LogCaptureFixture
) -> None:
    machine.plug(A)
    machine.plug(B, W)
    machine.start()
    windows = machine.finder()
    windows.want({W})
    machine.look()
    window = windows.find(W)
    assert window is not None
    machine.plug(C, W)
    machine.look()
    machine.look()
    assert windows.find(W) is None
    assert window.view[0] == 0  # a ring may still be there
    assert caplog.text.count(f"{B}, {C} have IVPosition 4711") == 1
    windows.want({W})
    machine.look()
    assert not machine.enabled(B)
    assert not machine.enabled(C)
    machine.unplug(B)
    machine.look()
    machine.look()
    assert windows.find(W) is not None
    windows.want(set())


def test_close_gives_all_windows_back(machine: WatchedVm) -> None:
    machine.plug(A)
    for address, number in ((B, W), (C, W + 1)):
        machine.plug(address, number)
    machine.start()
    windows = machine.finder()
    windows.want({W, W + 1})
    machine.look()
    machine.unplug(C)
    machine.look()
    machine.close()
    assert not machine.enabled(B)
    assert machine.events.closed


def test_window_that_is_wanted_is_bound_in_the_attempt_that_reads_its_position(
    machine: WatchedVm,
) -> None:
    machine.plug(A)
    machine.start()
    windows = machine.finder()
    windows.want({W})
    machine.plug(B, W)
    machine.look()
    assert windows.find(W) is not None
    assert machine.attempts == [A, B]
    windows.want(set())


def test_position_of_a_window_is_read_once(machine: WatchedVm) -> None:
    machine.plug(A)
    machine.plug(B, W)
    machine.start()
    for _ in range(3):
        machine.look(after=RETRY)
    assert machine.attempts == [A, B]


def test_window_that_is_no_longer_wanted_when_its_bind_ends_is_given_back(
    machine: WatchedVm,
) -> None:
    machine.plug(A)
    machine.start()
    windows = machine.finder()
    windows.want({W})
    gate = machine.slow_down(B)
    machine.plug(B, W)
    machine.look_once()
    assert gate.reached.wait(5)
    windows.want(set())
    gate.open()
    machine.look()
    assert windows.find(W) is None
    assert not machine.enabled(B)
    windows.want({W})
    machine.look()
    assert windows.find(W) is not None
    windows.want(set())
