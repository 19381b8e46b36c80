# SPDX-License-Identifier: Apache-2.0
"""A clock that is turned by hand."""


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds
