# SPDX-License-Identifier: Apache-2.0
"""Which links want which windows, and the windows that are bound for them.

A window that is lost while a link uses it (unplugged, or its driver unbound) is not
found any more, but stays mapped until that link says by `want` that its rings have
stopped using it.
"""

from collections.abc import Callable, Hashable, Set
from dataclasses import dataclass

from ..interfaces import Device, Window


@dataclass(eq=False)
class _Lost:
    """A window that is not found any more, and the links that may still use it."""

    device: Device
    users: set[Hashable]


class WindowTable:
    """The windows that are bound, by their IVPosition.

    Args:
        give_back: closes a device that no link uses.
    """

    def __init__(self, give_back: Callable[[Device], None]) -> None:
        self._give_back = give_back
        self._bound: dict[int, Device] = {}
        self._lost: list[_Lost] = []
        self._wants: dict[Hashable, Set[int]] = {}
        self.wanted: Set[int] = frozenset()
        """The windows that any link wants."""

    def find(self, number: int) -> Window | None:
        """Return the window with this ID, if it is bound."""
        device = self._bound.get(number)
        return device.window if device else None

    def add(self, number: int, device: Device) -> None:
        """Let links find a window from now on; the table closes it."""
        self._bound[number] = device

    def remove(self, number: int) -> None:
        """Let no link find a window any more; close it once no link uses it."""
        device = self._bound.pop(number)
        # A link that has not asked for the window has never been given it by `find`, so
        # only these can use it.
        users = {user for user, wants in self._wants.items() if number in wants}
        if users:
            self._lost.append(_Lost(device, users))
        else:
            self._give_back(device)

    def want(self, user: Hashable, numbers: Set[int]) -> None:
        """Note the windows that a link wants; it does not use any other.

        It has stopped using those that were lost before, even if it wants them
        again: it finds them once they are bound again.
        """
        self._wants.pop(user, None)
        if numbers:
            self._wants[user] = frozenset(numbers)
        self.wanted = frozenset().union(*self._wants.values())
        # The link has stopped its rings, so it no longer uses what was lost before.
        for lost in list(self._lost):
            lost.users.discard(user)
            if not lost.users:
                self._lost.remove(lost)
                self._give_back(lost.device)

    def close(self) -> None:
        """Close all windows; no link is left to use them."""
        for device in (*self._bound.values(), *(lost.device for lost in self._lost)):
            self._give_back(device)
        self._bound, self._lost = {}, []
