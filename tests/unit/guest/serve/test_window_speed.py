# SPDX-License-Identifier: Apache-2.0
"""How fast a window reads, and when that is worth a warning."""

import os
from collections.abc import Iterator

import pytest

from tests.fakes.bar import SIZE, FakeDevice
from vhostpci_guest.dataplane.mapping import Mapping
from vhostpci_guest.interfaces import Window
from vhostpci_guest.serve.window_speed import (
    LOOKS,
    PIECE,
    SLOW,
    Speed,
    Speeds,
    measure,
    piece_of,
)
from vhostpci_shared import metadata as md

FAST = Speed(window=9e9, own=10e9)
UNCACHED = Speed(window=1e8, own=10e9)
MILLISECOND = 1_000_000


class Stopwatch:
    """A clock by which each copy takes what the test says, in nanoseconds.

    Args:
        rounds: of each, how long our own memory takes, and how long the window; all
            that follow are as the last.
    """

    def __init__(self, *rounds: tuple[int, int]) -> None:
        self.rounds = 0
        self._steps = self._durations(rounds)
        self._now = 12345

    def __call__(self) -> int:
        self._now += next(self._steps)
        return self._now

    def _durations(self, rounds: tuple[tuple[int, int], ...]) -> Iterator[int]:
        yield 0
        while True:
            own, window = rounds[min(self.rounds, len(rounds) - 1)]
            yield from (0, own)
            self.rounds += 1
            yield window


@pytest.fixture
def page() -> memoryview:
    return memoryview(bytearray(PIECE))


@pytest.fixture
def device() -> Iterator[FakeDevice]:
    device = FakeDevice()
    yield device
    device.close()


class Meter:
    """Measures what the test says, and remembers that it was asked."""

    def __init__(self, *speeds: Speed | None) -> None:
        self.looks = 0
        self._speeds = speeds

    def __call__(self, _piece: memoryview) -> Speed | None:
        self.looks += 1
        return self._speeds[min(self.looks, len(self._speeds)) - 1]


def looked(device: FakeDevice, *speeds: Speed | None, times: int = 10) -> Meter:
    """Look at a device's window so many times, which measures so."""
    meter = Meter(*speeds)
    known = Speeds(device, meter)
    for _ in range(times):
        known.look({0: device.window})
    return meter


# Measuring.


def test_rate_is_bytes_by_the_time_of_a_copy(page: memoryview) -> None:
    speed = measure(page, Stopwatch((PIECE, 4 * PIECE)))
    assert speed == Speed(window=0.25e9, own=1e9)


def test_slow_round_does_not_lower_the_rate(page: memoryview) -> None:
    noisy = Stopwatch((90_000, 100), (100, 90_000), (100, 100))
    assert measure(page, noisy) == measure(page, Stopwatch((100, 100)))


def test_noise_cannot_hide_an_uncached_window(page: memoryview) -> None:
    speed = measure(page, Stopwatch((90_000, 50_000), (100, 40_000)))
    assert speed is not None
    assert speed.slow


def test_very_slow_window_is_read_a_few_times_only(page: memoryview) -> None:
    clock = Stopwatch((100, 2 * MILLISECOND))
    measure(page, clock)
    assert clock.rounds == 3


def test_clock_too_coarse_for_a_copy_is_no_error(page: memoryview) -> None:
    speed = measure(page, Stopwatch((0, 0)))
    assert speed is not None
    assert not speed.slow


def test_empty_memory_is_not_measured() -> None:
    assert measure(memoryview(b"")) is None


def test_memory_of_a_file_is_as_fast_as_our_own(device: FakeDevice) -> None:
    with piece_of(device.window) as piece:
        speed = measure(piece)
    assert speed is not None
    assert not speed.slow


def test_memory_that_is_read_byte_by_byte_is_slow() -> None:
    # By the clock: Python copies every other byte of a view as an uncached BAR is
    # read at the worst, one load for each.
    speed = measure(memoryview(bytearray(2 * PIECE))[::2])
    assert speed is not None
    assert speed.slow


@pytest.mark.parametrize("times", [SLOW - 1, SLOW])
def test_slow_is_eight_times_slower_than_our_own_memory(times: int) -> None:
    assert Speed(window=1e9, own=times * 1e9).slow == (times == SLOW)


# What is read of a window.


def test_page_of_the_daemon_is_read_to_measure_window_0(device: FakeDevice) -> None:
    device.window.view[SIZE - md.SIZE] = 42
    with piece_of(device.window) as piece:
        assert (len(piece), piece[0]) == (PIECE, 42)


def test_first_page_is_read_to_measure_another_window() -> None:
    device = FakeDevice(window=4711)
    device.window.view[0] = 42
    with piece_of(device.window) as piece:
        assert (len(piece), piece[0]) == (PIECE, 42)
    device.close()


def test_only_that_page_of_the_file_gets_memory() -> None:
    device = FakeDevice(window=4711)
    with piece_of(device.window) as piece:
        measure(piece)
    assert os.fstat(device.fd).st_blocks * 512 == PIECE
    device.close()


def test_window_without_room_for_the_metadata_is_not_read() -> None:
    device = FakeDevice(size=4096)
    assert looked(device, None).looks == 1
    with piece_of(device.window) as piece:
        assert len(piece) == 0
    device.close()


def test_lost_window_does_not_count_as_slow(
    device: FakeDevice, caplog: pytest.LogCaptureFixture
) -> None:
    os.ftruncate(device.fd, 0)
    speeds = Speeds(device)
    for _ in range(LOOKS):
        speeds.look({0: device.window})
    assert caplog.text == ""


# What is said.


def test_slow_window_is_warned_of_once(
    device: FakeDevice, caplog: pytest.LogCaptureFixture
) -> None:
    looked(device, UNCACHED)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    for part in ("0000:00:05.0", "window 0", "100 MB/s", "10000 MB/s", "bound by fake"):
        assert part in record.message


def test_slow_window_is_measured_again_before_the_warning(
    device: FakeDevice, caplog: pytest.LogCaptureFixture
) -> None:
    looked(device, UNCACHED, times=LOOKS - 1)
    assert caplog.text == ""


def test_window_that_was_slow_for_a_moment_is_not_warned_of(
    device: FakeDevice, caplog: pytest.LogCaptureFixture
) -> None:
    meter = looked(device, UNCACHED, FAST)
    assert caplog.text == ""
    assert meter.looks == 2


def test_measured_window_is_not_measured_again(device: FakeDevice) -> None:
    assert looked(device, FAST).looks == 1
    assert looked(device, UNCACHED).looks == LOOKS


@pytest.mark.parametrize(
    ("binding", "advice"),
    [
        ("sysfs", "module uio_vhostpci and take --bind kmod"),
        ("vfio", "module uio_vhostpci and take --bind kmod"),
        ("kmod", "a window of 1 GiB or more"),
        ("socket", "on tmpfs or hugetlbfs"),
    ],
)
def test_warning_says_what_to_do(
    device: FakeDevice, caplog: pytest.LogCaptureFixture, binding: str, advice: str
) -> None:
    device.binding = binding
    looked(device, UNCACHED)
    assert f"bound by {binding}" in caplog.text
    assert advice in caplog.text


def test_window_that_is_plugged_again_is_measured_again(device: FakeDevice) -> None:
    again = Mapping(device.fd, SIZE)
    meter = Meter(FAST)
    speeds = Speeds(device, meter)
    speeds.look({4711: device.window})
    speeds.look({4711: None})
    assert speeds.status(4711) is None
    speeds.look({4711: Window(4711, again.address, again.view, "fake")})
    assert meter.looks == 2
    again.close()


def test_measuring_keeps_nothing_of_a_window(device: FakeDevice) -> None:
    Speeds(device).look({0: device.window})
    device.close()
    assert device.closed


def test_status_is_in_megabytes_a_second(device: FakeDevice) -> None:
    speeds = Speeds(device, Meter(UNCACHED))
    assert speeds.status(0) is None
    speeds.look({0: device.window})
    assert speeds.status(0) == {"mbps": 100.0, "own_mbps": 10000.0, "slow": True}
