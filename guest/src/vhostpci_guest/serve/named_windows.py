# SPDX-License-Identifier: Apache-2.0
"""The windows that the metadata names, and those of them that rings use."""

from collections.abc import Mapping, Set

from ..interfaces import Window, Windows


class NamedWindows:
    """The windows that the regions of one device name.

    Args:
        windows: finds them.
    """

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._used: Mapping[int, Window | None] = {}

    def find(self, numbers: Set[int]) -> dict[int, Window | None]:
        """Return these windows, None for one that is not there."""
        return {number: self._windows.find(number) for number in sorted(numbers)}

    def use(self, windows: Mapping[int, Window | None]) -> None:
        """Use what `find` returned.  All other windows are unmapped: no ring uses them.

        Those that are not there are awaited.
        """
        self._used = windows
        self._windows.want(windows.keys())

    @property
    def numbers(self) -> Set[int]:
        """The windows that the metadata names."""
        return self._used.keys()

    @property
    def used(self) -> Mapping[int, Window | None]:
        """What `use` was given; all of it is still mapped."""
        return self._used

    @property
    def changed(self) -> bool:
        """Whether one of the named windows was plugged or unplugged since `use`."""
        return any(
            self._windows.find(number) is not window
            for number, window in self._used.items()
        )
