# SPDX-License-Identifier: Apache-2.0
"""What an unplugged window leaves behind in a QEMU without KVM, and its removal.

There ivshmem-doorbell watches the eventfds of its own vectors itself, and closes them
without an end to that ("QEMU 7.2 ... until": not mended in 10.2).  The event loop
then spins, and when another descriptor gets one of those numbers and has something to
read, QEMU uses the memory of the device that is gone, and dies.

A descriptor that we hand over gets the lowest number that is free, and a netdev of the
type "socket" watches it and ends that properly.  So we hand over as many as may be
free, and let each be a netdev for a moment.  With KVM the kernel takes the eventfds,
and there is nothing to do.
"""

import socket
from contextlib import ExitStack
from typing import Any, Protocol

_PERIPHERAL = "/machine/peripheral"


class Monitor(Protocol):
    """A way to QEMU's monitor."""

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Execute a command; return what QEMU answers."""

    async def hand_over(self, name: str, descriptor: socket.socket) -> None:
        """Give QEMU a descriptor, under a name."""


class Leftovers:
    """The vectors of a QEMU's windows that were asked to go."""

    def __init__(self) -> None:
        self._vectors: dict[str, int] = {}

    async def expect(self, monitor: Monitor, name: str) -> bool:
        """A device is about to be unplugged; return whether it will leave something.

        Raises:
            PlugError: QEMU does not say what we need to know.
            LookupError, TypeError, ValueError: it does not answer like that.
        """
        if (await monitor.execute("query-kvm"))["enabled"]:
            return False
        path = f"{_PERIPHERAL}/{name}"
        vectors = await monitor.execute("qom-get", path=path, property="vectors")
        self._vectors[name] = int(vectors)
        return True

    async def clear(self, monitor: Monitor, there: set[str]) -> None:
        """Remove what those have left that are no more among `there`.

        Nothing else may be handed to QEMU meanwhile.

        Raises:
            PlugError: QEMU does not let us.
        """
        gone = self._vectors.keys() - there
        if gone:
            # Its own, those of the peers that it knows, and what was free before.
            vectors = sum(self._vectors[name] for name in gone)
            await _occupy(monitor, 4 * vectors + 16)
            for name in gone:
                del self._vectors[name]


async def _occupy(monitor: Monitor, count: int) -> None:
    """Have the lowest free numbers watched, and watched no more."""
    names = [f"vhostpci-leftover-{number}" for number in range(count)]
    with ExitStack() as undo:
        for name in names:
            ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            for end in ends:
                undo.callback(end.close)
            await monitor.hand_over(name, ends[0])
        for name in names:
            await monitor.execute("netdev_add", type="socket", id=name, fd=name)
            await monitor.execute("netdev_del", id=name)
