# SPDX-License-Identifier: Apache-2.0
"""Fake front-ends that are not QEMU; they send what was recorded of the real ones.

    User Mode Linux 6.1     Debian's user-mode-linux, virtio_uml.device=SOCKET:1
    DPDK 22.11 virtio-user  Debian's dpdk-dev, net_virtio_user in dpdk-testpmd

Both count guest physical addresses as their own process does, so a region's guest and
user address are the same, and far from 0.
"""

import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.fakes.frontend import FrontEnd, RingAt
from vhostpci_shared import vhost_user as vu
from vhostpci_shared.vhost_user import ProtocolFeature, Request
from vhostpci_shared.virtio import Feature

UML_BASE = 0x3F29_5000
"""Where User Mode Linux has its memory: as address, and as offset in its file."""
DPDK_BASE = 0x1_0010_0000
"""Where DPDK has its memory; it starts at offset 0 of its file."""


def ring_at(base: int, index: int) -> RingAt:
    """Return a ring in 64 KiB that it shares with no other ring, above a base."""
    at = RingAt.nth(index)
    return RingAt(index, at.size, base + at.desc, base + at.avail, base + at.used)


def uml_region(size: int) -> vu.MemRegion:
    """Return the one region of User Mode Linux, which ends where its file ends."""
    return vu.MemRegion(UML_BASE, size, UML_BASE, UML_BASE)


def dpdk_region(size: int) -> vu.MemRegion:
    """Return the one region of --single-file-segments, or of --no-huge."""
    return vu.MemRegion(DPDK_BASE, size, DPDK_BASE, 0)


@dataclass
class UserModeLinux(FrontEnd):
    """User Mode Linux: it asks for a reply to each request, and enables no ring.

    Without F_PROTOCOL_FEATURES rings start enabled.  Its calls are socket pairs.  It
    stops no ring when its driver is removed; when the driver is loaded again, it
    describes all rings again.
    """

    need_reply: bool = True
    user_base: int = 0
    ends: dict[int, socket.socket] = field(default_factory=dict)
    """Our ends of the call sockets."""

    def connect(self) -> None:
        """Send what it sends when the kernel boots and probes the device."""
        self.send(Request.SET_OWNER)
        offered = Feature(vu.U64.parse(self.ask(Request.GET_FEATURES)).value)
        data = self.ask(Request.GET_PROTOCOL_FEATURES)
        wanted = ProtocolFeature.REPLY_ACK | ProtocolFeature.BACKEND_REQ
        assert wanted & ProtocolFeature(vu.U64.parse(data).value) == wanted
        self.protocol_features = wanted
        self.send(Request.SET_PROTOCOL_FEATURES, vu.U64(wanted))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self.send(Request.SET_BACKEND_REQ_FD, None, theirs.fileno())
        # Once with the transport's feature, and once more without.
        self.features = offered & ~(Feature.F_INDIRECT_DESC | Feature.NET_F_MQ)
        self.send(Request.SET_FEATURES, vu.U64(self.features))
        self.features &= ~Feature.F_PROTOCOL_FEATURES

    def driver_ok(self, rings: Iterable[RingAt], *, pairs: int = 1) -> None:
        """Send what it sends when the driver is loaded: all rings, then all kicks."""
        rings = list(rings)
        self.send(Request.SET_FEATURES, vu.U64(self.features))
        self.set_memory()
        for ring in rings:
            self._new_call(ring.index)
            self.send(Request.SET_VRING_NUM, vu.VringState(ring.index, ring.size))
            self.send(Request.SET_VRING_BASE, vu.VringState(ring.index, 0))
            self.send(Request.SET_VRING_ADDR, self.address(ring))
        for ring in rings:
            self._new_kick(ring.index)

    def remove_driver(self) -> None:
        """Send GET_FEATURES, the only message when the driver is removed."""
        self.ask(Request.GET_FEATURES)

    def _new_call(self, index: int) -> None:
        if index in self.ends:
            self.ends.pop(index).close()
        self.ends[index], theirs = socket.socketpair()
        with theirs:
            self.send(Request.SET_VRING_CALL, vu.VringFd(index), theirs.fileno())

    def interrupted(self, index: int) -> bool:
        """Return whether a call came within seconds, and clear it."""
        end = self.ends[index]
        end.settimeout(5.0)
        try:
            return end.recv(8) == (1).to_bytes(8, "little")
        except TimeoutError:
            return False

    def close(self) -> None:
        """Close everything, as the end of the process does."""
        super().close()
        for end in self.ends.values():
            end.close()
        self.ends.clear()


@dataclass
class Dpdk(FrontEnd):
    """DPDK: it sends the calls first, and enables the rings after describing them all.

    To stop, it disables all rings, and then asks each for its index.
    """

    user_base: int = 0

    def connect(self) -> None:
        """Send what it sends when the virtual device is probed."""
        self.send(Request.SET_OWNER)
        offered = Feature(vu.U64.parse(self.ask(Request.GET_FEATURES)).value)
        data = self.ask(Request.GET_PROTOCOL_FEATURES)
        wanted = ProtocolFeature.MQ | ProtocolFeature.REPLY_ACK
        self.protocol_features = wanted & ProtocolFeature(vu.U64.parse(data).value)
        self.send(Request.SET_PROTOCOL_FEATURES, vu.U64(self.protocol_features))
        mine = (
            Feature.NET_F_MRG_RXBUF
            | Feature.F_INDIRECT_DESC
            | Feature.F_PROTOCOL_FEATURES
            | Feature.F_VERSION_1
            | Feature.NET_F_MQ
        )
        self.features = offered & mine

    def driver_ok(self, rings: Iterable[RingAt], *, pairs: int = 1) -> None:
        """Send what it sends when testpmd starts the port."""
        rings = list(rings)
        for ring in rings:
            self._new_call(ring.index)
        self.send(Request.SET_FEATURES, vu.U64(self.features))
        self.set_memory()
        for ring in rings:
            self.send(Request.SET_VRING_NUM, vu.VringState(ring.index, ring.size))
            self.send(Request.SET_VRING_BASE, vu.VringState(ring.index, 0))
            self.send(Request.SET_VRING_ADDR, self.address(ring))
            self._new_kick(ring.index)
        self._enable(rings, on=True)

    def change_memory(
        self, regions: list[tuple[vu.MemRegion, int]], rings: Sequence[RingAt]
    ) -> None:
        """Send what it sends when its heap changes while the rings run."""
        self._enable(rings, on=False)
        self.regions = regions
        self.set_memory()
        self._enable(rings, on=True)

    def stop(self, rings: Sequence[RingAt]) -> list[int]:
        """Send what it sends when the port stops; return the index of each ring."""
        self._enable(rings, on=False)
        return [self.stop_ring(ring.index) for ring in rings]

    def _enable(self, rings: Iterable[RingAt], *, on: bool) -> None:
        for ring in rings:
            self.send(Request.SET_VRING_ENABLE, vu.VringState(ring.index, int(on)))
