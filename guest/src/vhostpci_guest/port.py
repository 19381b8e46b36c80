# SPDX-License-Identifier: Apache-2.0
"""The slave's end of one card: a TAP that outlives the device's comings and goings."""

import fcntl
import logging
import socket
import struct
from collections.abc import Set
from dataclasses import replace

from .device import Unusable
from .net import NetOptions
from .tap import DEFAULT_NAME, MTU_MAX, MTU_MIN, Tap, TapConfig, is_name, stable_mac

log = logging.getLogger(__name__)

_SIOCGIFMTU = 0x8921
_DEFAULT_MTU = 1500


class Port:
    """A TAP that is made when somebody knows for how many queue pairs.

    Args:
        config: what the user wants of it.
        device: name of the device that it is for.
    """

    def __init__(self, config: TapConfig, device: str) -> None:
        self._config = config
        self._device = device
        self._tap: Tap | None = None
        self._carrier = False
        self._options: NetOptions | None = None
        self._unused: Set[int] = frozenset()
        self._mtu = 0

    @property
    def name(self) -> str | None:
        """The TAP's name, once there is one."""
        return self._tap.name if self._tap else None

    @property
    def carrier(self) -> bool:
        """Whether the cable is in."""
        return self._carrier

    @property
    def mtu(self) -> int:
        """The TAP's MTU now: its user may change it."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            request = struct.pack("=16s16x", (self.name or "").encode())
            try:
                answer = fcntl.ioctl(sock.fileno(), _SIOCGIFMTU, request)
            except OSError:
                return _DEFAULT_MTU
        return int(struct.unpack_from("=i", answer, 16)[0])

    def open(self, queues: int, name: str) -> tuple[int, ...]:
        """Return a descriptor for each queue pair; the TAP is made if need be.

        Args:
            queues: how many queue pairs.
            name: the device's, for a TAP that the user gave none.

        Raises:
            Unusable: the TAP cannot be had, or not as the user wants it.
        """
        if self._tap and len(self._tap.fds) != queues:
            self.close()
        if self._tap is None:
            self._tap = self._make(queues, name)
            try:
                self._tap.configure(self._with_mac(self._tap, name))
            except BaseException:
                self.close()
                raise
            log.info("TAP %s for %d queue pair(s)", self._tap.name, queues)
        return self._tap.fds

    def _make(self, queues: int, name: str) -> Tap:
        if self._config.name is not None:
            return Tap(self._config.name, queues)
        if is_name(name):
            try:
                return Tap(name, queues, new=True)
            except Unusable as why:
                log.debug("%s; so the kernel chooses a name", why)
        return Tap(DEFAULT_NAME, queues)

    def _with_mac(self, tap: Tap, name: str) -> TapConfig:
        """Choose a MAC, unless the user did, or made the TAP."""
        if self._config.mac is not None or not tap.made:
            return self._config
        return replace(self._config, mac=stable_mac(self._device, name))

    def set_options(self, options: NetOptions) -> None:
        """Let packets look as the master's driver wants them."""
        if self._tap and options != self._options:
            self._tap.set_header_length(options.header_length)
            self._tap.set_offloads(options.offloads)
            self._options = options

    def use_queues(self, pairs: Set[int]) -> None:
        """Have the kernel spread packets over these queue pairs' queues only.

        What it gave to another would wait there for a driver that does not come.
        The first queue is always there.
        """
        if self._tap is None:
            return
        unused = set(range(1, len(self._tap.fds))) - pairs
        for index in sorted(unused ^ self._unused):
            self._tap.use_queue(index, index not in unused)
        self._unused = unused

    def check(self) -> None:
        """See that the TAP is still there.

        Raises:
            Unusable: somebody deleted it.
        """
        if self._tap:
            self._tap.check()

    def set_carrier(self, on: bool) -> None:
        """Plug the cable in, or out."""
        if self._tap and on != self._carrier:
            self._tap.set_carrier(on)
            self._carrier = on
            log.info("%s: carrier %s", self._tap.name, "on" if on else "off")

    def follow_mtu(self, mtu: int) -> None:
        """Take the MTU that the master was told, unless the user wants another."""
        if self._tap is None or self._config.mtu is not None or mtu in (0, self._mtu):
            return
        self._mtu = mtu
        if not MTU_MIN <= mtu <= MTU_MAX:
            log.warning("%s: MTU %d is none for a TAP", self._tap.name, mtu)
            return
        try:
            self._tap.set_mtu(mtu)
        except Unusable as why:
            log.warning("%s", why)

    def close(self) -> None:
        """Let go of the TAP; if we made it, it is gone then."""
        if self._tap:
            self._tap.close()
            self._tap, self._carrier, self._options, self._mtu = None, False, None, 0
            self._unused = frozenset()
