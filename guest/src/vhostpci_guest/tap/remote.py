# SPDX-License-Identifier: Apache-2.0
"""The requests for TAPs that an agent without capabilities has a helper make."""

from ..privileges.channel import Answer, Channel
from .orders import (
    ADDRESS,
    ADDRESS_GONE,
    ATTACH,
    BRIDGE,
    CHECK,
    COUNTERS,
    DROPPED,
    MOVED,
    MTU,
    REMOVE,
    SENDS,
    SET,
    VHOST_NET,
)
from .requests import Settings


class RemoteRequests:
    """`Requests` that a helper makes (tap/orders.py)."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def check_node(self) -> None:
        """Have it checked that /dev/net/tun can be opened."""
        self._channel.ask(CHECK)

    def attach(self, name: str, flags: int) -> tuple[int, str]:
        """Get a new descriptor of a TAP, and its name."""
        answer = self._channel.ask(ATTACH, name, flags)
        return _descriptor(answer, f"TAP {name}"), str(answer.value)

    def moved(self, fd: int) -> bool:
        """Ask whether the TAP is in another network namespace than the helper."""
        return bool(self._channel.ask(MOVED, fd=fd).value)

    def set(self, fd: int, what: str, settings: Settings) -> None:
        """Have attributes of the TAP set."""
        for name, value in settings.items():
            self._channel.ask(SET, what, name, value, fd=fd)

    def add_address(self, fd: int, address: str, length: int) -> None:
        """Have the TAP given an address."""
        self._channel.ask(ADDRESS, address, length, fd=fd)

    def remove_address(self, fd: int, address: str, length: int) -> None:
        """Have an address of the TAP removed."""
        self._channel.ask(ADDRESS_GONE, address, length, fd=fd)

    def mtu(self, fd: int) -> int:
        """Ask for the MTU of now."""
        return self._number(MTU, fd)

    def sends(self, fd: int) -> bool:
        """Ask whether the kernel may put packets into the TAP."""
        return bool(self._channel.ask(SENDS, fd=fd).value)

    def dropped(self, fd: int) -> int:
        """Ask how many packets the kernel has dropped because queues were full."""
        return self._number(DROPPED, fd)

    def _number(self, order: str, fd: int) -> int:
        value = self._channel.ask(order, fd=fd).value
        if not isinstance(value, int):
            raise ValueError(f"{order}: the helper sent {value!r} in place of a number")
        return value

    def counters(self, fd: int) -> tuple[int, ...]:
        """Ask for the TAP's counters."""
        value = self._channel.ask(COUNTERS, fd=fd).value
        if not isinstance(value, list):
            raise ValueError(f"{COUNTERS}: the helper sent {value!r}")
        return tuple(map(int, value))

    def open_vhost_net(self) -> int:
        """Get a new descriptor of /dev/vhost-net."""
        return _descriptor(self._channel.ask(VHOST_NET), VHOST_NET)

    def bridge(self, fd: int) -> str | None:
        """Ask for the bridge that the TAP is in."""
        value = self._channel.ask(BRIDGE, fd=fd).value
        return None if value is None else str(value)

    def remove(self, index: int) -> None:
        """Have a TAP removed that an agent has left."""
        self._channel.ask(REMOVE, index)


def _descriptor(answer: Answer, what: str) -> int:
    if answer.fd is None:
        raise ValueError(f"{what}: the helper sent no descriptor")
    return answer.fd
