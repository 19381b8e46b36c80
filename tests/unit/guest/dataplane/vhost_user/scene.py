# SPDX-License-Identifier: Apache-2.0
"""What a test of the data plane vhost-user starts with."""

import mmap
import os
import select
from contextlib import ExitStack
from ctypes import addressof, c_char, c_uint16, c_uint32
from pathlib import Path
from typing import Self

from tests.fakes.back_end import FakeBackEnd
from vhostpci_guest.dataplane.call_thread import CallThread
from vhostpci_guest.dataplane.interface import MemRegion, RingConf, Stopping
from vhostpci_guest.dataplane.vhost_user.approach import Approach, Listener
from vhostpci_guest.dataplane.vhost_user.place import Place
from vhostpci_guest.dataplane.vhost_user.plane import VhostUserPlane
from vhostpci_guest.dataplane.vhost_user.sockets import LocalSockets
from vhostpci_guest.eventfds import new_eventfd
from vhostpci_guest.interfaces import Eventfd, WindowFile
from vhostpci_shared.virtio import Feature

SIZE = 1 << 16
GUEST = 1 << 30
"""Where the master's memory begins."""
DRIVER, DEVICE = GUEST + 0x1000, GUEST + 0x2000
FEATURES = int(Feature.F_VERSION_1 | Feature.NET_F_MRG_RXBUF)


def listener(path: Path) -> Listener:
    """Return a socket that this process makes."""
    return Listener(path, "net0", LocalSockets(Place(str(path), listens=True)))


class Scene:
    """A data plane, which the test looks after as the agent's loop does.

    Args:
        path: of the socket.
        pairs: queue pairs of the device.
        approach: None for a socket that the agent makes.
    """

    def __init__(
        self, path: Path, pairs: int = 1, approach: Approach | None = None
    ) -> None:
        self.path = path
        self.mtu = 0
        self.register = c_uint32()
        """A doorbell: what is stopped at the end may ring it once more."""
        self._undo = ExitStack()
        # Closed last: a thread of the data plane looks into the memory to the end.
        self._memory = self._undo.enter_context(ExitStack())
        self.approach = approach or listener(path)
        self._undo.callback(self.approach.close)
        self.calls = CallThread("net0", confine=False)
        self.plane = VhostUserPlane(
            *(self.approach, "net0", pairs), mtu=lambda: self.mtu, calls=self.calls
        )
        self._undo.callback(self.plane.close)
        self.lost = False
        """Whether the data plane said that rings may have stopped."""
        self.kick = self._eventfd()
        self.regions = [self.region()]
        self.plane.set_memory(self.regions)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # First: a thread of its looks at the rings, and the memory goes next.
        self.plane.close()
        self._undo.close()

    def _eventfd(self) -> int:
        fd = new_eventfd()
        self._undo.callback(os.close, fd)
        return fd

    def region(self, guest: int = GUEST, *, file: bool = True) -> MemRegion:
        """Return memory of the master's, in a separate file."""
        fd = os.memfd_create("memory")
        self._memory.callback(os.close, fd)
        os.ftruncate(fd, SIZE)
        view = mmap.mmap(fd, SIZE)
        self._memory.callback(view.close)
        buffer = c_char.from_buffer(view)
        address = addressof(buffer)
        del buffer
        return MemRegion(guest, SIZE, address, WindowFile(fd) if file else None)

    # Back-ends.

    def come(self) -> FakeBackEnd:
        """Return a back-end that has connected, and has said nothing yet."""
        back_end = FakeBackEnd.connect(self.path)
        self._undo.callback(back_end.close)
        return back_end

    def meet(self, back_end: FakeBackEnd | None = None) -> FakeBackEnd:
        """Have a back-end say what it can do."""
        back_end = back_end or self.come()
        self.talk(back_end)
        return back_end

    def talk(self, *back_ends: FakeBackEnd) -> None:
        """Have the agent and the back-ends say all that they have to say."""
        for _ in range(8):
            self.look()
            for back_end in back_ends:
                back_end.serve()
        self.look()

    def look(self) -> None:
        """Look at the data plane if it wants that."""
        if self.wants_look:
            self.lost |= self.plane.look()

    @property
    def wants_look(self) -> bool:
        """Whether its descriptor is readable."""
        poll = select.poll()
        poll.register(self.plane.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def tick(self, times: int = 1) -> None:
        """Let that many fifths of a second pass."""
        for _ in range(times):
            self.plane.tick()
            self.look()

    # Rings.

    def conf(self, base: int = 0, *, features: int = FEATURES) -> RingConf:
        """Return a ring of 16 entries."""
        call = new_eventfd()
        return RingConf(
            desc=GUEST,
            driver=DRIVER,
            device=DEVICE,
            size=16,
            base=base,
            hdr_len=12,
            max_packet=65535,
            features=features,
            kick_fd=self.kick,
            call=Eventfd(call),
        )

    def start(self, base: int = 0) -> None:
        """Start both rings of the first pair, which lie at the same place."""
        for index in (0, 1):
            self.plane.start(index, self.conf(base))

    def move_used(self, at: int) -> None:
        """Write the used index, as a back-end does."""
        address = self.regions[0].host_addr + DEVICE + 2 - GUEST
        c_uint16.from_address(address).value = at

    def stops(self, index: int) -> int | None:
        """Ask for a ring's stop; return its index once it has stopped."""
        try:
            return self.plane.stop(index)
        except Stopping:
            return None
