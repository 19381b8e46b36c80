# SPDX-License-Identifier: Apache-2.0
"""Work around QEMU without KVM (TCG) watching an unplugged window's closed eventfds.

Under TCG, ivshmem-doorbell watches the eventfds of its own vectors in QEMU's event
loop.  When the device is unplugged, QEMU closes them and goes on watching their
numbers (QEMU 7.2 until at least 11.1).  The event loop then spins; and when another
descriptor gets one of those numbers and becomes readable, QEMU calls the handler of
the freed device, and crashes.  QEMU 11 watches by io_uring, which holds the closed
eventfds themselves: its event loop does not spin, but a signal of one of them, by us
or as a kick by the master, crashes it as well.  With KVM the kernel waits for the
eventfds, and there is nothing to clear.

The workaround replaces those handlers.  A descriptor that we pass to QEMU gets the
lowest number that is free, and a netdev of type "socket" sets a handler for it and
removes that handler properly.  So we pass as many descriptors as there may be free
numbers below the highest stale one, and make each a netdev for a moment.
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


class TcgEventfds:
    """The eventfds that unplugged windows leave watched in one QEMU."""

    def __init__(self) -> None:
        self._vectors: dict[str, int] = {}

    async def expect(self, monitor: Monitor, name: str) -> bool:
        """Note a device before it is unplugged; return whether to call `clear` after.

        Raises:
            PlugError: QEMU refuses a question, or does not answer.
            LookupError, TypeError, ValueError: the answer is not of QEMU's form.
        """
        if (await monitor.execute("query-kvm"))["enabled"]:
            return False
        # Ask now: an unplugged device has no properties.
        path = f"{_PERIPHERAL}/{name}"
        vectors = await monitor.execute("qom-get", path=path, property="vectors")
        self._vectors[name] = int(vectors)
        return True

    async def clear(self, monitor: Monitor, there: set[str]) -> None:
        """Replace the handlers that devices left which are no longer among `there`.

        The caller must plug nothing meanwhile: the new device's descriptors would get
        the very numbers that are still watched.

        Raises:
            PlugError: QEMU refuses, or does not answer; a later call tries again.
        """
        gone = self._vectors.keys() - there
        if gone:
            # A device's own eventfds came with its handshake, so they are among the
            # lowest numbers that it freed.  The rest of the count is for numbers that
            # were free before.  Too many only cost time; too few would leave a stale
            # number watched.
            vectors = sum(self._vectors[name] for name in gone)
            await _occupy(monitor, 4 * vectors + 16)
            for name in gone:
                del self._vectors[name]


async def _occupy(monitor: Monitor, count: int) -> None:
    """Set and remove a handler for each of QEMU's `count` lowest free numbers."""
    names = [f"vhostpci-eventfd-{number}" for number in range(count)]
    with ExitStack() as undo:
        for name in names:
            # System calls: socketpair(AF_UNIX).
            ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            for end in ends:
                undo.callback(end.close)
            await monitor.hand_over(name, ends[0])
        # A second loop: a netdev that is deleted closes its descriptor, and the next
        # one handed over would get the same number again.
        for name in names:
            await monitor.execute("netdev_add", type="socket", id=name, fd=name)
            await monitor.execute("netdev_del", id=name)
