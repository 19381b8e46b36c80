# SPDX-License-Identifier: Apache-2.0
"""A fake clock, which the test sets."""


class Clock:
    """A time function whose result changes only when the test sets `seconds`."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds
