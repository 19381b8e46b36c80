# SPDX-License-Identifier: Apache-2.0
"""Where packed rings stood, for the daemon that follows one that has ended.

A packed ring's position stands in the metadata only.  In attach mode that ends with its
daemon, while the master's driver and this agent live on.  The agent knows where it has
stopped each ring, and writes that into the metadata of the next daemon, before it says
that it is ready.  The daemon checks it like all that an agent writes.
"""

from collections.abc import Mapping

from vhostpci_shared.access import Metadata
from vhostpci_shared.position import Position

_NOTHING = Position()


class LeftPositions:
    """The positions at which an agent has stopped packed rings, by device and ring."""

    def __init__(self) -> None:
        self._left: dict[str, dict[int, Position]] = {}

    def keep(self, name: str, positions: Mapping[int, Position | None]) -> None:
        """Remember where the rings of a device stand.

        Args:
            name: the device's, as its daemon says: what shows it may be another one
                when the next daemon is there.
            positions: of the rings that ran; None of one that does not go on there.
        """
        kept = self._left.setdefault(name, {})
        for index, position in positions.items():
            if position is None:
                kept.pop(index, None)
            else:
                kept[index] = position

    def bring(self, name: str, metadata: Metadata) -> None:
        """Write what is known into a device's metadata, where that says nothing."""
        for index, position in self._left.get(name, {}).items():
            # In arena mode the metadata has what an agent wrote last, maybe not this.
            if metadata.position(index) == _NOTHING:
                metadata.write_position(index, position)
