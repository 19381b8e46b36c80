# SPDX-License-Identifier: Apache-2.0
"""When the TAP has its carrier."""

from ..dataplane.interface import Port

_IDLE_TICKS = 2
"""Ticks without a running ring until the carrier goes off: 0.2 to 0.4 s."""
_PLUG_TICKS = 25
"""The same while a window is absent: 5 s, since a slave VM needs some to plug one."""


class Carrier:
    """Sets the carrier of a port on while a ring runs, and off once none will run.

    A master stops its rings for some milliseconds when its memory changes, and the
    rings wait longer if the new memory is a window that is still being plugged.  To set
    the carrier off for that would have the slave's kernel drop packets that it else
    queues in the TAP, look for the master's hardware address again (at least a second),
    and have a bridge relearn its addresses.

    Args:
        port: the port of the TAP.
    """

    def __init__(self, port: Port) -> None:
        self._port = port
        self._idle_ticks = 0

    def tick(self) -> None:
        """Count a tick; `follow` counts only those since a ring ran."""
        self._idle_ticks += 1

    def follow(
        self, *, running: bool, blocked: bool, master: bool, absent: bool
    ) -> None:
        """Set the carrier.

        Args:
            running: whether a ring runs now.
            blocked: whether a receive ring that should run has stopped by itself.
            master: whether a master is connected.
            absent: whether the rings wait for a window.

        Raises:
            Unusable: the TAP is gone.
        """
        # Not without end: the slave VM may have no room for the window.
        patience = _PLUG_TICKS if absent else _IDLE_TICKS
        if blocked:
            # At once: what the slave's kernel sends meanwhile reaches no master.
            self._port.set_carrier(False)
        elif running:
            self._idle_ticks = 0
            self._port.set_carrier(True)
        elif not master or self._idle_ticks >= patience:
            self._port.set_carrier(False)
