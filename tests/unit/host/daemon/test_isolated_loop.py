# SPDX-License-Identifier: Apache-2.0
"""A device's isolated loop: a failure in one callback ends all of that device's."""

import errno
import os
from collections.abc import Iterator

import pytest

from tests.fakes.loop import ManualLoop
from vhostpci_host.daemon.isolated_loop import IsolatedLoop
from vhostpci_host.fds import Notifier


class IsolatedDevice:
    """An isolated loop, and what it has reported."""

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
def device() -> IsolatedDevice:
    return IsolatedDevice()


@pytest.fixture
def notifier() -> Iterator[Notifier]:
    with Notifier.new() as notifier:
        yield notifier


def test_callbacks_are_called_as_by_any_loop(
    device: IsolatedDevice, notifier: Notifier
) -> None:
    device.watch(device.loop, notifier)
    device.loop.call_later(1.0, device.count)
    device.loop.call_later(1.0, device.count).cancel()
    notifier.signal()
    device.outer.advance(2.0)
    assert device.calls == 2
    device.loop.remove_reader(notifier.fileno())
    assert not device.outer.watched()
    assert device.loop.time() == device.outer.time()


def test_failure_is_reported_once_and_nothing_is_called_after_it(
    device: IsolatedDevice, notifier: Notifier
) -> None:
    device.loop.add_reader(notifier.fileno(), device.fail)
    device.loop.call_later(1.0, device.count)
    device.loop.call_later(1.0, device.fail)
    notifier.signal()
    device.outer.advance(2.0)
    assert [str(error) for error in device.failures] == ["ours"]
    assert not device.calls
    assert not device.outer.watched()


def test_failed_device_starts_nothing_new(
    device: IsolatedDevice, notifier: Notifier
) -> None:
    device.loop.call_later(0.0, device.fail)
    device.outer.advance()
    device.loop.add_reader(notifier.fileno(), device.count)
    device.loop.call_later(0.0, device.count).cancel()
    device.loop.call_later(0.0, device.count)
    notifier.signal()
    device.outer.advance(1.0)
    assert not device.calls


def test_failure_leaves_other_devices_alone(
    device: IsolatedDevice, notifier: Notifier
) -> None:
    other = IsolatedLoop(device.outer, device.failures.append, device.shortages.append)
    device.watch(other, notifier)
    other.call_later(1.0, device.count)
    device.loop.call_later(0.0, device.fail)
    device.outer.advance()
    notifier.signal()
    device.outer.advance(1.0)
    assert device.calls == 2


def test_shortage_of_descriptors_is_no_failure(device: IsolatedDevice) -> None:
    device.loop.call_later(0.0, device.run_out)
    device.loop.call_later(1.0, device.count)
    device.outer.advance(1.0)
    assert [error.errno for error in device.shortages] == [errno.EMFILE]
    assert not device.failures
    assert device.calls == 1


def test_other_errors_of_the_machine_are_failures(device: IsolatedDevice) -> None:
    device.loop.call_later(0.0, lambda: os.close(-1))
    device.outer.advance()
    assert isinstance(device.failures[0], OSError)


def test_failure_to_handle_a_shortage_is_a_failure(device: IsolatedDevice) -> None:
    loop = IsolatedLoop(
        device.outer, device.failures.append, lambda error: device.fail()
    )
    loop.call_later(0.0, device.run_out)
    device.outer.advance()
    assert [str(error) for error in device.failures] == ["ours"]
