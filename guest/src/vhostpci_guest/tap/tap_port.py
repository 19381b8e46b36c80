# SPDX-License-Identifier: Apache-2.0
"""The slave's end of a card: a TAP that outlives the device's comings and goings.

The ports of one agent know of each other (`Ports`), so that rules which give two
devices the same TAP are found out: the second is refused, the first goes on.
"""

import fcntl
import logging
import socket
import struct
from collections.abc import Set
from dataclasses import dataclass, replace

from ..errors import Unusable
from ..net_options import NetOptions
from .bridge import Bridge
from .naming import Rules
from .tap import DEFAULT_NAME, MTU_MAX, MTU_MIN, Tap, TapConfig, is_name, stable_mac

log = logging.getLogger(__name__)

_SIOCGIFMTU = 0x8921
_DEFAULT_MTU = 1500


@dataclass(slots=True)
class _Claim:
    """What a device has, and no other of this agent may have."""

    label: str
    number: int
    name: str | None = None
    mac: str | None = None


class Ports:
    """The ports of one agent.

    Args:
        rules: what the user wants of their TAPs.
        bridge: what they join.
    """

    def __init__(self, rules: Rules, bridge: Bridge | None = None) -> None:
        self.rules = rules
        self.bridge = bridge
        self._claims: dict[str, _Claim] = {}

    def make(self, device: str) -> "Port":
        """Return the port of a device; its name and its number are its until `close`.

        Args:
            device: its PCI address, or the path of its socket.
        """
        return Port(self, device)

    def claim(self, device: str, name: str) -> TapConfig:
        """Return what a device's TAP is to be, which no other has from now on.

        Args:
            device: as for `make`.
            name: what the metadata calls it.

        Raises:
            Unusable: another has it, or a rule makes nonsense of this device.
        """
        claim = self._claims.setdefault(device, _Claim("", self._free_number()))
        claim.label = f"{device} ({name!r})"
        config = self.rules.config(claim.label, name, claim.number)
        for other in self._others(device):
            if config.name is not None and config.name == other.name:
                raise Unusable(self._twice(claim, other, "--tap", config.name))
            if config.mac is not None and config.mac == other.mac:
                raise Unusable(self._twice(claim, other, "--mac", config.mac))
        claim.name, claim.mac = config.name, config.mac
        return config

    def _free_number(self) -> int:
        used = {claim.number for claim in self._claims.values()}
        return next(n for n in range(len(used) + 1) if n not in used)

    def _others(self, device: str) -> list[_Claim]:
        return [claim for held, claim in self._claims.items() if held != device]

    def _twice(self, claim: _Claim, other: _Claim, option: str, what: str) -> str:
        rule = self.rules.tap if option == "--tap" else self.rules.mac
        example = "--tap vp{n}" if option == "--tap" else "--mac 02:00:00:00:00:{n}"
        return (
            f"{claim.label}: {option} {rule or what} gives it {what}, which "
            f"{other.label} has already: give each its own, as in {example}"
        )

    def note(self, device: str, tap: str) -> None:
        """Take note of the name that a device's TAP has got."""
        self._claims[device].name = tap

    def own_mac(self, device: str, name: str) -> str:
        """Return a MAC for a device to which the user gives none.

        A PCI device that is plugged again may come into another slot, and keeps its
        MAC.  What tells apart two sockets of the same name is their path.
        """
        mac = stable_mac(device if "/" in device else "", name)
        if any(mac == other.mac for other in self._others(device)):
            mac = stable_mac(device, name)
        self._claims[device].mac = mac
        return mac

    def release(self, device: str) -> None:
        """Let others have what a device had."""
        self._claims.pop(device, None)


class Port:
    """A TAP that is made when somebody knows for how many queue pairs.

    Args:
        ports: those of this agent, of which it is one.
        device: name of the device that it is for.
    """

    def __init__(self, ports: Ports, device: str) -> None:
        self._ports = ports
        self._device = device
        self._tap: Tap | None = None
        self._bridge_index: int | None = None
        self._carrier = False
        self._options: NetOptions | None = None
        self._unused: Set[int] = frozenset()
        self._mtu = 0

    @property
    def name(self) -> str | None:
        """The TAP's name, once there is one."""
        return self._tap.name if self._tap else None

    @property
    def bridge(self) -> str | None:
        """The bridge that the TAP was made to join, while that is there."""
        bridge = self._ports.bridge
        return bridge.name if bridge and self._bridge_index is not None else None

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
            name: the device's, as the metadata has it.

        Raises:
            Unusable: the TAP cannot be had, or not as the user wants it.
        """
        if self._tap and len(self._tap.fds) != queues:
            self._drop_tap()
        if self._tap is None:
            config = self._ports.claim(self._device, name)
            self._tap = self._make(config.name, queues, name)
            try:
                self._configure(self._tap, config, name)
            except BaseException:
                self._drop_tap()
                raise
            log.info("TAP %s for %d queue pair(s)", self._tap.name, queues)
        return self._tap.fds

    def _make(self, wanted: str | None, queues: int, name: str) -> Tap:
        if wanted is not None:
            return Tap(wanted, queues)
        if is_name(name):
            try:
                return Tap(name, queues, new=True)
            except Unusable as why:
                log.debug("%s; so the kernel chooses a name", why)
        return Tap(DEFAULT_NAME, queues)

    def _configure(self, tap: Tap, config: TapConfig, name: str) -> None:
        """Set a TAP up, with a MAC of our own unless the user chose one, or made it."""
        self._ports.note(self._device, tap.name)
        if config.mac is None and tap.made:
            config = replace(config, mac=self._ports.own_mac(self._device, name))
        if self._ports.bridge is not None:
            self._bridge_index = self._ports.bridge.join(tap.name)
        tap.configure(config)

    def set_options(self, options: NetOptions) -> None:
        """Let packets look as the master's driver wants them."""
        if self._tap and options != self._options:
            self._tap.set_header_length(options.hdr_len)
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
        if self._tap is None or self._ports.rules.mtu or mtu in (0, self._mtu):
            return
        self._mtu = mtu
        if not MTU_MIN <= mtu <= MTU_MAX:
            log.warning("%s: MTU %d is none for a TAP", self._tap.name, mtu)
            return
        try:
            self._tap.set_mtu(mtu)
        except Unusable as why:
            log.warning("%s", why)

    def follow_bridge(self) -> None:
        """See what has become of the bridge: join it if it was made again.

        Whoever takes the TAP out of a bridge that is there may do so.
        """
        bridge = self._ports.bridge
        if self._tap is None or bridge is None or bridge.index == self._bridge_index:
            return
        self._bridge_index = bridge.index
        if self._bridge_index is None:
            log.warning(
                "%s: bridge %s is gone: make it again, and the TAP joins it",
                *(self._tap.name, bridge.name),
            )
            return
        try:
            bridge.join(self._tap.name)
        except Unusable as why:
            log.warning("%s", why)
        else:
            log.info("%s: joined bridge %s again", self._tap.name, bridge.name)

    def close(self) -> None:
        """Let go of the TAP and of its number; if we made it, it is gone then."""
        self._drop_tap()
        self._ports.release(self._device)

    def _drop_tap(self) -> None:
        if self._tap:
            self._tap.close()
            self._tap, self._carrier, self._options, self._mtu = None, False, None, 0
            self._unused = frozenset()
