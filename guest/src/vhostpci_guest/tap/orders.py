# SPDX-License-Identifier: Apache-2.0
"""What the helper for TAPs does for the agent, and what it refuses.

The agent, and with it a master that has taken it over, gets by this helper TAPs that
it makes or that are free, and for each TAP whose descriptor it shows: name, MAC, MTU,
addresses, alias, "up", and a place in a bridge that the user has named.  It gets
vhost-net, which serves the memory and the TAPs of the process that uses it.  It gets no
other interface changed, and no route, no firewall rule, no namespace.
"""

import ipaddress
import os
import stat
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from ..privileges.channel import Answer, BadOrder, Handler, Order
from . import left
from .bridge import Bridge
from .requests import IFF_TUN_EXCL, Requests
from .settings import MTU_MAX, NAME_MAX, is_name, parse_mac
from .tap import (
    IFF_MULTI_QUEUE,
    IFF_NO_CARRIER,
    IFF_NO_PI,
    IFF_TAP,
    IFF_VNET_HDR,
)

CHECK = "check the node"
ATTACH = "attach"
MOVED = "moved"
SET = "set"
ADDRESS = "add address"
ADDRESS_GONE = "remove address"
MTU = "mtu"
SENDS = "sends"
DROPPED = "dropped"
COUNTERS = "counters"
VHOST_NET = "open vhost-net"
BRIDGE = "bridge"
MAKE_BRIDGE = "make bridge"
REMOVE = "remove"
FORGET = "forget the status socket"

_TUN = os.makedev(10, 200)
"""The device number of /dev/net/tun (Linux, "Linux allocated devices")."""
_FLAGS = (
    IFF_TAP | IFF_NO_CARRIER | IFF_MULTI_QUEUE | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL
)


class TapOrders:
    """Carries the orders out.

    Args:
        requests: how.
        bridges: returns the names of the bridges that TAPs may join now.
        status_socket: what is removed when the agent ends, as its directory is root's.
    """

    def __init__(
        self,
        requests: Requests,
        bridges: Callable[[], Collection[str]] = tuple,
        status_socket: Path | None = None,
    ) -> None:
        self._requests = requests
        self._bridges = bridges
        self._status_socket = status_socket

    def handlers(self) -> Mapping[str, Handler]:
        """Return what does each order."""
        return {
            CHECK: self._check,
            ATTACH: self._attach,
            MOVED: lambda order: Answer(int(self._requests.moved(_tap(order)))),
            SET: self._set,
            ADDRESS: self._add_address,
            ADDRESS_GONE: self._remove_address,
            MTU: lambda order: Answer(self._requests.mtu(_tap(order))),
            SENDS: lambda order: Answer(int(self._requests.sends(_tap(order)))),
            DROPPED: lambda order: Answer(self._requests.dropped(_tap(order))),
            COUNTERS: self._counters,
            VHOST_NET: lambda _order: Answer(fd=self._requests.open_vhost_net()),
            BRIDGE: lambda order: Answer(self._requests.bridge(_tap(order))),
            MAKE_BRIDGE: self._make_bridge,
            REMOVE: self._remove,
            FORGET: self._forget,
        }

    def _check(self, _order: Order) -> Answer:
        self._requests.check_node()
        return Answer()

    def _attach(self, order: Order) -> Answer:
        name, flags = order.text(0), order.number(1)
        if len(name.encode()) > NAME_MAX:
            raise BadOrder(f"{name!r} is no name of an interface")
        if flags & ~_FLAGS:
            raise BadOrder(f"flags {flags:#x} are not a TAP's")
        fd, name = self._requests.attach(name, flags)
        return Answer(name, fd)

    def _set(self, order: Order) -> Answer:
        fd, what, name = _tap(order), order.text(0), order.text(1)
        if name == "master":
            value: str | int = self._master(order)
        elif name in _VALUES:
            value = _VALUES[name](order)
        else:
            raise BadOrder(f"{name!r} is not for the agent to set")
        self._requests.set(fd, what, {name: value})
        return Answer()

    def _master(self, order: Order) -> int:
        index = order.number(2)
        # 0 is no bridge.
        if index and index not in {Bridge(name).index for name in self._bridges()}:
            raise BadOrder(f"interface {index} is not a bridge that the user named")
        return index

    def _make_bridge(self, order: Order) -> Answer:
        if (name := order.text(0)) not in self._bridges():
            raise BadOrder(f"{name!r} is not a bridge that the user named")
        Bridge(name).make()
        return Answer()

    def _add_address(self, order: Order) -> Answer:
        self._requests.add_address(_tap(order), *_ip(order))
        return Answer()

    def _remove_address(self, order: Order) -> Answer:
        self._requests.remove_address(_tap(order), *_ip(order))
        return Answer()

    def _counters(self, order: Order) -> Answer:
        return Answer([str(count) for count in self._requests.counters(_tap(order))])

    def _remove(self, order: Order) -> Answer:
        index = order.number(0)
        if index not in {tap.index for tap in left.find_all()}:
            raise BadOrder(f"interface {index} is no TAP that an agent has left")
        self._requests.remove(index)
        return Answer()

    def _forget(self, _order: Order) -> Answer:
        if self._status_socket is not None:
            self._status_socket.unlink(missing_ok=True)
        return Answer()


def _tap(order: Order) -> int:
    """Return the descriptor that came with an order, if it is a TAP's."""
    fd = order.fd()
    status = os.fstat(fd)
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _TUN:
        raise BadOrder(f"{order.name}: the descriptor is no TAP's")
    return fd


def _ip(order: Order) -> tuple[str, int]:
    """Return an address and the length of its prefix."""
    address, length = order.text(0), order.number(1)
    try:
        ip = ipaddress.ip_interface(f"{address}/{length}")
    except ValueError as error:
        raise BadOrder(str(error)) from None
    return str(ip.ip), ip.network.prefixlen


def _address(order: Order) -> str:
    try:
        return parse_mac(order.text(2))
    except ValueError as error:
        raise BadOrder(str(error)) from None


def _mtu(order: Order) -> int:
    if (mtu := order.number(2)) > MTU_MAX:
        raise BadOrder(f"MTU {mtu} is more than {MTU_MAX}")
    return mtu


def _alias(order: Order) -> str:
    alias = order.text(2)
    if not alias.startswith(f"{left.ALIAS} "):
        raise BadOrder(f"{alias!r} is no alias of an agent's TAP")
    return alias


def _state(order: Order) -> str:
    if order.text(2) != "up":
        raise BadOrder("a TAP is only set up")
    return "up"


def _name(order: Order) -> str:
    if not is_name(name := order.text(2)):
        raise BadOrder(f"{name!r} is no name of an interface")
    return name


_VALUES: Mapping[str, Callable[[Order], str | int]] = {
    "address": _address,
    "ifname": _name,
    "mtu": _mtu,
    "ifalias": _alias,
    "state": _state,
}
