# SPDX-License-Identifier: Apache-2.0
"""Numbers for people."""

import pytest

from vhostpci_shared import units


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (65536, "64 KiB"),
        (1 << 30, "1 GiB"),
        (3 << 29, "1.5 GiB"),
        (2**64, "16384 PiB"),
    ],
)
def test_size_of_memory_has_powers_of_1024(number: int, text: str) -> None:
    assert units.size(number) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 bit/s"),
        (0.25, "0.25 bit/s"),
        (999, "999 bit/s"),
        (999.6, "1 kbit/s"),
        (1234, "1.23 kbit/s"),
        (12345, "12.3 kbit/s"),
        (1.2e9, "1.2 Gbit/s"),
        (98_000_000, "98 Mbit/s"),
    ],
)
def test_rate_has_three_digits(value: float, text: str) -> None:
    assert units.si(value, "bit/s") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min 59 s"),
        (11520, "3 h 12 min"),
        (86400 * 2 + 30, "2 d"),
    ],
)
def test_time_has_its_two_greatest_units(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


def test_count_has_groups_of_digits() -> None:
    assert units.count(1234567) == "1,234,567"
    assert units.short(9999) == "9,999"
    assert units.short(48_213_377) == "48.2M"
    assert units.short(2**64) == "18447P"
