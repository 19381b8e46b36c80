# SPDX-License-Identifier: Apache-2.0
"""A fake vhost-net: it notes what it is told, and does what a test has it do."""

import os
from collections.abc import Sequence

from vhostpci_guest.dataplane.interface import MemRegion, RingConf
from vhostpci_shared.virtio import Feature

FEATURES = (
    Feature.F_VERSION_1
    | Feature.NET_F_MRG_RXBUF
    | Feature.F_EVENT_IDX
    | Feature.F_INDIRECT_DESC
)
"""What the vhost-net of Linux 6.1 has, of the bits that a plane asks for."""


class FakeVhost:
    """One open /dev/vhost-net, of one queue pair."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.features = int(FEATURES)
        self.refusals: dict[str, int] = {}
        """By the methods' names: the errno that the kernel gives."""
        self.memory: tuple[MemRegion, ...] = ()
        self.taps: dict[int, int] = {}
        """The rings that run, and the descriptors of their TAPs."""
        self.addresses: dict[int, tuple[int, int, int]] = {}
        self.signals: dict[int, dict[str, int | None]] = {}
        self.taken: dict[int, int] = {}
        """How many chains of each ring it has taken."""
        self.closed = False

    def _may(self, what: str) -> None:
        if number := self.refusals.get(what):
            raise OSError(number, os.strerror(number))

    def set_memory(self, regions: Sequence[MemRegion]) -> None:
        assert not self.taps, "the memory changes under a ring that runs"
        self._may("set_memory")
        self.memory = tuple(regions)

    def set_up(
        self, ring: int, conf: RingConf, addresses: tuple[int, int, int]
    ) -> None:
        assert ring not in self.taps, "a ring changes while it runs"
        self._may("set_up")
        self.addresses[ring] = addresses
        self.taken[ring] = conf.base

    def set_signals(
        self, ring: int, *, kick: int | None, call: int | None, error: int | None
    ) -> None:
        assert ring not in self.taps, "eventfds change while a ring runs"
        self._may("set_signals")
        self.signals[ring] = {"kick": kick, "call": call, "error": error}

    def run(self, ring: int, tap: int) -> None:
        self._may("run")
        self.taps[ring] = tap

    def halt(self, ring: int) -> None:
        self.taps.pop(ring, None)

    def base(self, ring: int) -> int:
        assert ring not in self.taps, "the base of a ring that runs"
        return self.taken[ring]

    def close(self) -> None:
        os.close(self.fd)
        self.closed = True

    # What a test has it do.

    def signal(self, ring: int, what: str) -> None:
        """Signal one of a ring's eventfds, as ``call`` or ``error``."""
        fd = self.signals[ring][what]
        assert fd is not None
        os.eventfd_write(fd, 1)
