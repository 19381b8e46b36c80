# SPDX-License-Identifier: Apache-2.0
"""A slave VM that is still connected to an earlier daemon.

The ivshmem device of a QEMU does not reconnect.  If the daemon dies, the slave VM keeps
the arena mapped, so its agent sees the metadata that the next daemon writes there.  But
its vectors and its doorbells lead nowhere, and no packet can cross.  Only plugging
the device again, or restarting the slave VM, gives it a connection to this daemon.

We know such a slave by its agent, which writes into the metadata although no slave is
connected.
"""

PATIENCE = 5
"""Looks after which an agent without a connection is reported: 4 s.

An agent ends with its connection, and counts as alive for 2 s after its last word.
"""

NOTICE = (
    "the slave VM is connected to an earlier daemon: its agent lives, but its QEMU has "
    "no connection here, and no packet can cross"
)
ADVICE = (
    "restart the slave VM; or unplug its device and plug it again, if it is in a root "
    "port (QEMU cannot unplug what is on pcie.0)",
    "it is unplugged and plugged again by itself",
)
"""What to do: for a device on the slave's command line, and for one that we plug."""


class StaleSlave:
    """Notices that the slave VM is connected to an earlier daemon.

    Args:
        plugged: whether the daemon plugs the slave's device.
    """

    def __init__(self, *, plugged: bool) -> None:
        self._text = f"{NOTICE}: {ADVICE[plugged]}"
        self._looks = 0

    @property
    def problem(self) -> str:
        """What is wrong and what to do about it; empty if nothing is."""
        return self._text if self._looks >= PATIENCE else ""

    def look(self, *, connected: bool, agent_lives: bool) -> str:
        """Look once a second; return the problem if it is new.

        Args:
            connected: whether a slave is connected to this daemon.
            agent_lives: whether an agent writes into the metadata.
        """
        if connected or not agent_lives:
            self._looks = 0
            return ""
        self._looks += 1
        return self.problem if self._looks == PATIENCE else ""
