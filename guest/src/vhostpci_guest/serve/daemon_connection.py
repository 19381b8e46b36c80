# SPDX-License-Identifier: Apache-2.0
"""Whether the daemon that writes the metadata is the one that our device knows.

The ivshmem device of a QEMU does not reconnect.  When the daemon dies and another one
is started, that one may write to the same memory, so its metadata and its heartbeat are
seen here; but it has no connection to our device, and says so.
"""

from vhostpci_shared import metadata as md
from vhostpci_shared.metadata import DeviceFlag

from .heartbeat import SILENT_TICKS

PATIENCE_TICKS = SILENT_TICKS + 5
"""Ticks until a missing connection counts as lost: 4 s.

A daemon that ends closes its connection first, and counts as silent only later.
"""


class DaemonConnection:
    """Follows what the daemon says of its connection to our device."""

    def __init__(self) -> None:
        self._ticks = 0

    @property
    def lost(self) -> bool:
        """Whether the daemon has had no connection to our device for some time."""
        return self._ticks >= PATIENCE_TICKS

    def tick(self, snapshot: md.Snapshot | None, *, alive: bool) -> bool:
        """Look once a tick; return whether the connection was found to be lost now.

        Args:
            snapshot: what the daemon says; None if that cannot be understood.
            alive: whether it lives.
        """
        connected = snapshot is None or DeviceFlag.SLAVE in snapshot.device.flags
        if connected or not alive:
            # A daemon that is silent says nothing new: that is told elsewhere.
            self._ticks = 0
            return False
        self._ticks += 1
        return self._ticks == PATIENCE_TICKS
