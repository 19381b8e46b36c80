# SPDX-License-Identifier: Apache-2.0
"""PciWatch binds the windows that a link wants, and gives them back."""

import pytest

from tests.unit.guest.pci.watched_vm import A, B, C, W, WatchedVm
from vhostpci_guest.interfaces import Window, Windows
from vhostpci_guest.pci.functions import RETRY


@pytest.fixture
def links(machine: WatchedVm) -> list[Windows]:
    """Serve the device A, beside the window W at B; return what two links would ask."""
    machine.plug(A)
    machine.plug(B, W)
    machine.start()
    return [machine.finder(), machine.finder()]


def mapped(machine: WatchedVm, *links: Windows) -> Window:
    """Have these links want the window W; return the window, which is mapped."""
    for windows in links:
        windows.want({W})
    machine.look()
    window = links[0].find(W)
    assert window is not None
    return window


def unmapped(window: Window) -> bool:
    """Whether nothing can touch the window's memory any more."""
    try:
        _ = window.view[0]
    except ValueError:  # the view is released
        return True
    return False


def test_window_is_bound_only_while_it_is_wanted(
    machine: WatchedVm, links: list[Windows]
) -> None:
    assert machine.watch is not None
    assert machine.served == [A]
    assert not machine.enabled(B)
    assert machine.watch.interval is None
    links[0].want({W})
    assert machine.watch.interval == 0
    assert mapped(machine, links[0]).id == W
    links[0].want(set())
    assert links[0].find(W) is None
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


def test_released_window_may_be_wanted_again(
    machine: WatchedVm, links: list[Windows]
) -> None:
    for _ in range(2):
        mapped(machine, links[0])
        links[0].want(set())


def test_unplugged_window_stays_mapped_until_its_link_releases_it(
    machine: WatchedVm, links: list[Windows]
) -> None:
    window = mapped(machine, links[0])
    machine.unplug(B)
    machine.look()
    assert links[0].find(W) is None
    assert window.view[0] == 0
    links[0].want({W})
    machine.look()
    assert unmapped(window)
    links[0].want(set())


def test_window_of_two_links_stays_until_both_release_it(
    machine: WatchedVm, links: list[Windows]
) -> None:
    window = mapped(machine, *links)
    links[0].want(set())
    assert links[1].find(W) is window
    machine.unplug(B)
    machine.look()
    assert window.view[0] == 0
    links[1].want(set())
    machine.look()
    assert unmapped(window)


def test_unplugged_window_of_two_links_stays_mapped_until_both_release_it(
    machine: WatchedVm, links: list[Windows]
) -> None:
    window = mapped(machine, *links)
    machine.unplug(B)
    machine.look()
    links[0].want(set())
    machine.look()
    assert window.view[0] == 0
    links[1].want(set())
    machine.look()
    assert unmapped(window)


def test_two_windows_with_one_ivposition_are_both_refused(
    machine: WatchedVm, links: list[Windows], caplog: pytest.LogCaptureFixture
) -> None:
    window = mapped(machine, links[0])
    machine.plug(C, W)
    machine.look()
    machine.look()
    assert links[0].find(W) is None
    assert window.view[0] == 0  # a ring may still use it
    assert caplog.text.count(f"{B}, {C} have IVPosition 4711") == 1
    links[0].want({W})
    machine.look()
    assert not machine.enabled(B)
    assert not machine.enabled(C)
    machine.unplug(B)
    machine.look()
    machine.look()
    assert links[0].find(W) is not None
    links[0].want(set())


def test_close_gives_all_windows_back(machine: WatchedVm, links: list[Windows]) -> None:
    machine.plug(C, W + 1)
    links[0].want({W, W + 1})
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


def test_position_of_a_window_is_read_once(
    machine: WatchedVm, links: list[Windows]
) -> None:
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
