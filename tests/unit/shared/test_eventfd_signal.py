# SPDX-License-Identifier: Apache-2.0
"""A signal to an eventfd never waits, whatever another process does to its file."""

import os
import threading
from collections.abc import Iterator

import pytest

from vhostpci_shared import eventfd_signal
from vhostpci_shared.eventfd_signal import Signaller, signal_eventfd

FULL = 2**64 - 2


@pytest.fixture
def eventfd() -> Iterator[int]:
    """An eventfd whose file is blocking, as another process may make it."""
    number = os.eventfd(0)
    yield number
    os.close(number)


def test_signals_add_up_however_many_there_are(eventfd: int) -> None:
    """More than the kernel keeps results for."""
    signaller = Signaller()
    for _ in range(1000):
        signaller.signal(eventfd)
    assert os.eventfd_read(eventfd) == 1000


def test_signal_leaves_what_is_there(eventfd: int) -> None:
    os.eventfd_write(eventfd, 7)
    signal_eventfd(eventfd)
    assert os.eventfd_read(eventfd) == 8


def test_signal_to_a_full_eventfd_does_not_wait(eventfd: int) -> None:
    os.eventfd_write(eventfd, FULL)
    thread = threading.Thread(target=lambda: signal_eventfd(eventfd))
    thread.start()
    thread.join(5.0)
    waits = thread.is_alive()
    assert os.eventfd_read(eventfd) >= FULL  # which ends a wait
    thread.join()
    assert not waits
    assert os.get_blocking(eventfd)


def test_what_is_no_eventfd_is_an_error() -> None:
    with open("/dev/null", "rb") as null, pytest.raises(OSError, match="Invalid"):
        signal_eventfd(null.fileno())


def test_machine_without_asynchronous_reads_is_told_of_once(
    eventfd: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(eventfd_signal, "_signaller", None)
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    for _ in range(3):
        signal_eventfd(eventfd)
    assert os.eventfd_read(eventfd) == 3
    assert caplog.text.count("could stop this process") == 1
    assert not os.get_blocking(eventfd)
    os.eventfd_write(eventfd, FULL)
    signal_eventfd(eventfd)
