# SPDX-License-Identifier: Apache-2.0
"""Keeping VFIO devices open for a moment longer than the agent lives.

When the last descriptor of a device is closed, vfio-pci switches the device's memory
off, and resets it if it can: behind a root port that takes a second.  Meanwhile all of
the window reads as ones.  The kernel closes the descriptors of an agent that is killed
at once, while another process that works the rings, or the kernel's vhost-net, has not
noticed yet.  It would take 65,535 for the index of the available ring, and work
thousands of chains that no driver has made.

So a helper without any right has a copy of each descriptor whose window was given away,
and ends some time after the agent.  Until then the next agent finds the group busy, and
waits (pci/vfio.py).
"""

import fcntl
import os
import time
from collections.abc import Mapping

from ..privileges.channel import Answer, BadOrder, Channel, Handler, Order

HOLD, LET_CLOSE = "hold", "let close"
LINGER = 1.5
"""Seconds; a back-end learns of the agent's end from its socket, and vhost-net is ended
with the agent's other descriptors."""
MOST = 256
"""Descriptors that the helper holds."""


class HoldOrders:
    """Carries the orders out, in the helper."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}

    def handlers(self) -> Mapping[str, Handler]:
        """Return what does each order."""
        return {HOLD: self._hold, LET_CLOSE: self._let_close}

    def linger(self) -> None:
        """Keep what is held for a while; the agent has ended."""
        if self._held:
            time.sleep(LINGER)

    def _hold(self, order: Order) -> Answer:
        name, fd = order.text(0), order.fd()
        if name not in self._held and len(self._held) >= MOST:
            raise BadOrder(f"more than {MOST} descriptors to hold")
        copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
        self._drop(name)
        self._held[name] = copy
        return Answer()

    def _let_close(self, order: Order) -> Answer:
        self._drop(order.text(0))
        return Answer()

    def _drop(self, name: str) -> None:
        if name in self._held:
            os.close(self._held.pop(name))


class Holder:
    """The agent's end: has descriptors held."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def hold(self, name: str, fd: int) -> None:
        """Have a copy of a descriptor held until `let_close`.

        Raises:
            Unusable: the helper has ended.
            OSError: it refuses.
        """
        self._channel.ask(HOLD, name, fd=fd)

    def let_close(self, name: str) -> None:
        """Have the copy closed; raises as `hold` does."""
        self._channel.ask(LET_CLOSE, name)
