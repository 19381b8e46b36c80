# SPDX-License-Identifier: Apache-2.0
"""The windows that the metadata names: used until a ring no longer needs them."""

from collections.abc import Mapping, Set

from ..interfaces import Window, Windows


class Named:
    """The windows that the regions of a device name, as its link sees them.

    Args:
        windows: finds them.
    """

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._seen: Mapping[int, Window | None] = {}

    def find(self, numbers: Set[int]) -> dict[int, Window | None]:
        """Return these windows, None for one that is not there."""
        return {number: self._windows.find(number) for number in sorted(numbers)}

    def keep(self, seen: Mapping[int, Window | None]) -> None:
        """Act by what `find` returned: no ring uses any other window now."""
        self._seen = seen
        self._windows.want(seen.keys())

    @property
    def numbers(self) -> Set[int]:
        """The windows that are named."""
        return self._seen.keys()

    @property
    def seen(self) -> Mapping[int, Window | None]:
        """What `keep` was told; all of it is still mapped."""
        return self._seen

    @property
    def moved(self) -> bool:
        """Whether one has come or gone since `keep`."""
        return any(
            self._windows.find(number) is not window
            for number, window in self._seen.items()
        )
