# SPDX-License-Identifier: Apache-2.0
"""A link with all that is around it, in one process and without a device.

FakeDaemon ──metadata──► Link ──► FakePlane, FakePort
                          └─── FakeWindows
"""

from tests.fakes.bar import FakeDaemon, FakeDevice, FakeWindows, ring
from tests.fakes.plane import FakePlane, FakePort
from vhostpci_guest.serve.left_positions import LeftPositions
from vhostpci_guest.serve.link import Link
from vhostpci_guest.serve.window_speed import Speed, Speeds
from vhostpci_guest.tap.tap_port import TapPort
from vhostpci_shared import metadata as md


class Bench:
    """A link, with the daemon in front of it and a data plane behind."""

    def __init__(self, **options: int) -> None:
        self.device = FakeDevice(**options)  # type: ignore[arg-type]
        self.daemon = FakeDaemon(self.device)
        self.planes: list[FakePlane] = []
        self.port = FakePort(make_plane=self.make_plane)
        self.windows = FakeWindows()
        self.link: Link | None = None
        self.speeds = Speeds(self.device, self.measure)
        self.speed = Speed(window=9e9, own=10e9)
        """What any window is measured as."""

    def measure(self, _piece: memoryview) -> Speed:
        return self.speed

    @property
    def plane(self) -> FakePlane:
        return self.planes[-1]

    @property
    def running(self) -> set[int]:
        return set(self.plane.running) if self.planes else set()

    def make_plane(self, port: TapPort, device: str) -> FakePlane:
        self.planes.append(FakePlane(port, device))
        return self.plane

    def attach(self, left: LeftPositions | None = None) -> Link:
        self.link = Link(
            *(self.device, self.port, self.windows, self.speeds),
            left=left,
        )
        return self.link

    def publish(self, *rings: md.Ring, **device: object) -> int:
        """Publish, and let the living link see it."""
        generation = self.daemon.publish(*rings, **device)  # type: ignore[arg-type]
        self.look()
        return generation

    def set_used(self, index: int, used: int) -> None:
        """Write a ring's used index, as another back-end does."""
        at = ring(index, session=1).device + 2
        self.device.window.view[at : at + 2] = used.to_bytes(2, "little")

    def look(self) -> None:
        assert self.link is not None
        self.daemon.beat()
        self.link.look()

    def ticks(self, count: int, *, daemon: bool = True) -> None:
        """Let time go by."""
        assert self.link is not None
        for _ in range(count):
            if daemon:
                self.daemon.beat()
            self.link.tick()
            self.link.look()

    def close(self) -> None:
        if self.link is not None:
            self.link.close()
        self.daemon.close()
        for plane in self.planes:
            plane.close()
        self.windows.close()
        self.device.close()
