# SPDX-License-Identifier: Apache-2.0
"""A device's own loop: what fails in it, and what is called back then."""

import errno
import os
from collections.abc import Iterator

import pytest

from tests.fakes.loop import ManualLoop
from vhostpci_host.daemon.isolated_loop import IsolatedLoop
from vhostpci_host.fds import Notifier


class Guard:
    """A guarded loop, and what it has told of."""

    def __init__(self) -> None:
        self.outer = ManualLoop()
        self.failures: list[Exception] = []
        self.shortages: list[OSError] = []
        self.loop = IsolatedLoop(
            self.outer, self.failures.append, self.shortages.append
        )
        self.calls = 0

    def count(self) -> None:
        """Be called back."""
        self.calls += 1

    def watch(self, loop: IsolatedLoop, notifier: Notifier) -> None:
        """Count the signals of a notifier."""

        def signalled() -> None:
            notifier.drain()
            self.count()

        loop.add_reader(notifier.fileno(), signalled)

    def fail(self) -> None:
        """Be called back, and fail."""
        raise ValueError("ours")

    def run_out(self) -> None:
        """Be called back when there are no descriptors."""
        raise OSError(errno.EMFILE, "no more")


@pytest.fixture
def guard() -> Guard:
    return Guard()


@pytest.fixture
def notifier() -> Iterator[Notifier]:
    with Notifier.new() as notifier:
        yield notifier


def test_callbacks_come_as_from_any_loop(guard: Guard, notifier: Notifier) -> None:
    guard.watch(guard.loop, notifier)
    guard.loop.call_later(1.0, guard.count)
    guard.loop.call_later(1.0, guard.count).cancel()
    notifier.signal()
    guard.outer.advance(2.0)
    assert guard.calls == 2
    guard.loop.remove_reader(notifier.fileno())
    assert not guard.outer.watched()
    assert guard.loop.time() == guard.outer.time()


def test_failure_is_told_once_and_nothing_is_called_after_it(
    guard: Guard, notifier: Notifier
) -> None:
    guard.loop.add_reader(notifier.fileno(), guard.fail)
    guard.loop.call_later(1.0, guard.count)
    guard.loop.call_later(1.0, guard.fail)
    notifier.signal()
    guard.outer.advance(2.0)
    assert [str(error) for error in guard.failures] == ["ours"]
    assert not guard.calls
    assert not guard.outer.watched()


def test_failed_device_starts_nothing_new(guard: Guard, notifier: Notifier) -> None:
    guard.loop.call_later(0.0, guard.fail)
    guard.outer.advance()
    guard.loop.add_reader(notifier.fileno(), guard.count)
    guard.loop.call_later(0.0, guard.count).cancel()
    guard.loop.call_later(0.0, guard.count)
    notifier.signal()
    guard.outer.advance(1.0)
    assert not guard.calls


def test_failure_leaves_other_devices_alone(guard: Guard, notifier: Notifier) -> None:
    other = IsolatedLoop(guard.outer, guard.failures.append, guard.shortages.append)
    guard.watch(other, notifier)
    other.call_later(1.0, guard.count)
    guard.loop.call_later(0.0, guard.fail)
    guard.outer.advance()
    notifier.signal()
    guard.outer.advance(1.0)
    assert guard.calls == 2


def test_shortage_of_descriptors_is_no_failure(guard: Guard) -> None:
    guard.loop.call_later(0.0, guard.run_out)
    guard.loop.call_later(1.0, guard.count)
    guard.outer.advance(1.0)
    assert [error.errno for error in guard.shortages] == [errno.EMFILE]
    assert not guard.failures
    assert guard.calls == 1


def test_other_errors_of_the_machine_are_failures(guard: Guard) -> None:
    guard.loop.call_later(0.0, lambda: os.close(-1))
    guard.outer.advance()
    assert isinstance(guard.failures[0], OSError)


def test_shortage_that_cannot_be_dealt_with_is_a_failure(guard: Guard) -> None:
    loop = IsolatedLoop(guard.outer, guard.failures.append, lambda error: guard.fail())
    loop.call_later(0.0, guard.run_out)
    guard.outer.advance()
    assert [str(error) for error in guard.failures] == ["ours"]
