# SPDX-License-Identifier: Apache-2.0
"""The port of a device whose packets go to a back-end: a socket."""

from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

from ...errors import Unusable
from ...net_options import NetOptions
from ..call_thread import CallThread
from ..kinds import VHOST_USER
from .approach import Approach, Connector, Listener
from .place import Place
from .plane import VhostUserPlane
from .sockets import Sockets


class SocketPorts:
    """The ports of one agent.

    Args:
        place: where the sockets are.
        sockets: make them, or connect to them.
        make_calls: makes what passes calls on, for the device of that name.
    """

    def __init__(
        self, place: Place, sockets: Sockets, make_calls: Callable[[str], CallThread]
    ) -> None:
        self.place = place
        self.sockets = sockets
        self.make_calls = make_calls
        self._users: dict[Path, str] = {}

    def make(self, device: str) -> "SocketPort":
        """Return the port of a device: its PCI address, or the path of its socket."""
        return SocketPort(self, device)

    def claim(self, device: str, path: Path) -> None:
        """Reserve a path for a device.

        Raises:
            Unusable: another device has it.
        """
        other = self._users.setdefault(path, device)
        if other != device:
            raise Unusable(
                f"{device}: the device {other} has the socket {path}: give each its "
                "own by {name} in the path",
                code="G061",
            )

    def release(self, device: str) -> None:
        """Make a device's path available to other devices."""
        self._users = {p: user for p, user in self._users.items() if user != device}


class SocketPort:
    """A `Port`: the socket where a back-end and the agent meet.

    It has no queue, no carrier and no header: most of what a TAP is told is
    nothing to it, as the back-end has the ring itself.

    Args:
        ports: all ports of this agent.
        device: the device's PCI address, or the path of its socket.
    """

    kind = VHOST_USER
    takes_uso = None
    idle = True

    def __init__(self, ports: SocketPorts, device: str) -> None:
        self._ports = ports
        self._device = device
        self._approach: Approach | None = None
        self._pairs = 0
        self._mtu = 0
        self._carrier = False

    @property
    def place(self) -> Place:
        """The user's rule for its path."""
        return self._ports.place

    @property
    def carrier(self) -> bool:
        return self._carrier

    def open(self, queues: int, name: str) -> None:
        self._pairs = queues
        if self._approach is not None:
            return
        path = self._ports.place.path(name)
        self._ports.claim(self._device, path)
        try:
            kind = Listener if self._ports.place.listens else Connector
            self._approach = kind(path, name, self._ports.sockets)
        except Unusable:
            self._ports.release(self._device)
            raise

    def make_plane(self, device: str) -> VhostUserPlane:
        assert self._approach is not None, "the port is open"
        return VhostUserPlane(
            *(self._approach, device, self._pairs),
            mtu=lambda: self._mtu,
            calls=self._ports.make_calls(device),
        )

    def check(self) -> None:
        """Do nothing: a socket whose file is gone still serves its back-end."""

    def follow(self) -> None:
        """Do nothing: the data plane watches the socket's path."""

    def follow_mtu(self, mtu: int) -> None:
        """Note the MTU: a back-end is told it together with the memory."""
        self._mtu = mtu

    def set_options(self, options: NetOptions) -> None:
        """Do nothing: the back-end is told the driver's features."""

    def use_queues(self, pairs: Set[int]) -> None:
        """Do nothing: the back-end is told which rings run."""

    def discard(self, pair: int) -> None:
        """Do nothing: no packet waits here."""

    def set_carrier(self, on: bool) -> None:
        """Note it for `status`: vhost-user has no word for it."""
        self._carrier = on

    def leave(self) -> None:
        """Close the socket: the device may be another port's when it comes back."""
        self.close()

    def status(self) -> dict[str, Any]:
        return {
            "data_plane_reason": "",
            "socket": str(self._approach.path) if self._approach else None,
            "carrier": self._carrier,
            "uso": None,
            "tap": None,
            "bridge": None,
            "tap_dropped": None,
        }

    def close(self) -> None:
        self._carrier = False
        self._ports.release(self._device)
        if self._approach is not None:
            self._approach.close()
            self._approach = None
