# SPDX-License-Identifier: Apache-2.0
"""The port of each device, of the kind that the user wants for it.

A device's name, and with it what the user has set for it, is known only when its port
is opened.  So the agent gets a `DevicePort` for each device.  It makes the port that it
stands for when it learns the name, and changes that port, or makes another one, when
the user's settings change.
"""

import logging
from collections.abc import Callable, Iterator, Set
from functools import partial
from typing import Any

from ..config.settings import PlaneSettings, Settings
from ..dataplane.call_thread import CallThread
from ..dataplane.interface import DataPlane
from ..dataplane.vhost_user.place import Place
from ..dataplane.vhost_user.port import SocketPort, SocketPorts
from ..net_options import NetOptions
from ..tap.change import TapChange
from ..tap.tap_port import Plane, PlaneMaker, Ports, TapPort
from .separation import Helpers

log = logging.getLogger(__name__)

Inner = TapPort | SocketPort


class DevicePorts:
    """The ports of one agent.

    Args:
        settings: what the user has set.
        helpers: do what needs rights.
        make_planes: returns what makes the data plane of a device on a TAP.
        confine: whether our threads have only the system calls that they need.

    Raises:
        Unusable: this machine lacks something for a data plane that the user wants.
    """

    def __init__(
        self,
        settings: Settings,
        helpers: Helpers,
        make_planes: Callable[[PlaneSettings], PlaneMaker],
        *,
        confine: bool,
    ) -> None:
        self.settings = settings
        self._helpers = helpers
        self._make_planes = make_planes
        self._makers: dict[PlaneSettings, PlaneMaker] = {}
        self._make_calls = partial(CallThread, confine=confine)
        self.check(settings)
        self._taps = Ports(
            settings.rules,
            plane=self.plane(settings.plane),
            keep=settings.keep_tap,
            requests=helpers.requests,
        )
        self._sockets: dict[Place, SocketPorts] = {}
        """The ports of each rule for sockets, no two of which may have one path."""
        self._open: dict[DevicePort, None] = {}
        """The ports that stand for one that is made, in the order of their opening."""

    def check(self, settings: Settings) -> None:
        """Find out whether this machine has what data planes need.

        Raises:
            Unusable: it lacks something.
        """
        for wanted in settings.planes:
            if wanted.data_plane.has_tap and wanted not in self._makers:
                self._makers[wanted] = self._make_planes(wanted)

    def make(self, device: str) -> "DevicePort":
        """Return the port of a device: its PCI address, or the path of its socket."""
        return DevicePort(self, device)

    def note(self, port: "DevicePort") -> None:
        """Note whether a port stands for one that is made."""
        if port.inner is None:
            self._open.pop(port, None)
        else:
            self._open[port] = None

    def inner(self, device: str, name: str) -> Inner:
        """Make the port that the device of that name is to have."""
        wanted = self.settings.plane_of(name)
        place = wanted.data_plane.place
        if place is None:
            return self._taps.make(device, self.plane(wanted))
        assert self._helpers.sockets is not None, "a helper that makes sockets"
        if place not in self._sockets:
            self._sockets[place] = SocketPorts(
                place, self._helpers.sockets, self._make_calls
            )
        return self._sockets[place].make(device)

    def plane(self, wanted: PlaneSettings) -> Plane:
        """Return what makes a data plane on a TAP."""
        choice = wanted.data_plane
        return Plane(choice.kind, self._makers.get(wanted, _no_tap), choice.reason)

    def open_ports(self) -> Iterator["DevicePort"]:
        """Return the ports that stand for one that is made."""
        return iter(self._open)

    def use(self, settings: Settings) -> None:
        """Have ports that are made or changed from now on follow these settings.

        Raises:
            Unusable: this machine lacks something for a data plane.
        """
        self.check(settings)
        self.settings = settings
        self._taps.rules, self._taps.keep = settings.rules, settings.keep_tap

    def make_way(self) -> None:
        """Prepare TAPs for `change`: they give up what others of them are to get."""
        inner = [port.inner for port in self._open]
        self._taps.make_way(port for port in inner if isinstance(port, TapPort))


def _no_tap(port: TapPort, device: str) -> DataPlane:
    raise AssertionError(f"{device}: the user wants no TAP such as {port.name}")


class DevicePort:
    """A `Port`: that of a TAP or of a socket, once the device's name is known.

    Args:
        ports: all ports of this agent.
        device: the device's PCI address, or the path of its socket.
    """

    def __init__(self, ports: DevicePorts, device: str) -> None:
        self._ports = ports
        self._device = device
        self.name = ""
        """The device's name; empty while it is not known."""
        self.inner: Inner | None = None

    @property
    def kind(self) -> str:
        if self.inner is not None:
            return self.inner.kind
        return self._ports.settings.plane_of(self.name).data_plane.kind

    @property
    def carrier(self) -> bool:
        return self.inner is not None and self.inner.carrier

    @property
    def takes_uso(self) -> bool | None:
        return None if self.inner is None else self.inner.takes_uso

    @property
    def idle(self) -> bool:
        return self.inner is None or self.inner.idle

    def open(self, queues: int, name: str) -> None:
        if self.inner is not None and name != self.name:
            self.close()  # the user may have set something else for that name
        self.name = name
        if self.inner is None:
            self.inner = self._ports.inner(self._device, name)
            self._ports.note(self)
        self.inner.open(queues, name)

    def make_plane(self, device: str) -> DataPlane:
        assert self.inner is not None, "the port is open"
        return self.inner.make_plane(device)

    def change(self) -> TapChange:
        """Follow the user's settings; the data plane is closed if it is another one."""
        wanted = self._ports.settings.plane_of(self.name)
        if isinstance(self.inner, TapPort):
            self.inner.plane = self._ports.plane(wanted)
            return self.inner.change()
        return TapChange()

    def close_for(self, wanted: PlaneSettings) -> None:
        """Close the port if packets are to go where it cannot send them."""
        place = self.inner.place if isinstance(self.inner, SocketPort) else None
        if self.inner is not None and place != wanted.data_plane.place:
            self.close()

    def check(self) -> None:
        if self.inner is not None:
            self.inner.check()

    def follow(self) -> None:
        if self.inner is not None:
            self.inner.follow()

    def follow_mtu(self, mtu: int) -> None:
        if self.inner is not None:
            self.inner.follow_mtu(mtu)

    def set_options(self, options: NetOptions) -> None:
        if self.inner is not None:
            self.inner.set_options(options)

    def use_queues(self, pairs: Set[int]) -> None:
        if self.inner is not None:
            self.inner.use_queues(pairs)

    def discard(self, pair: int) -> None:
        if self.inner is not None:
            self.inner.discard(pair)

    def set_carrier(self, on: bool) -> None:
        if self.inner is not None:
            self.inner.set_carrier(on)

    def leave(self) -> None:
        if self.inner is not None:
            self.inner.leave()

    def status(self) -> dict[str, Any]:
        inner = self.inner or self._ports.inner(self._device, self.name)
        return inner.status()

    def close(self) -> None:
        inner, self.inner = self.inner, None
        self._ports.note(self)
        if inner is not None:
            inner.close()
