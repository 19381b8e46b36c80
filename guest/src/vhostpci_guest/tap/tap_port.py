# SPDX-License-Identifier: Apache-2.0
"""The port of a device: its TAP, which stays when the device is away for a while.

`Ports` knows the ports of one agent, and which of them has which name (claims.py).
"""

import logging
import os
from collections.abc import Callable, Iterable, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from vhostpci_shared.errors import told

from ..dataplane.interface import DataPlane
from ..errors import Unusable
from ..net_options import NetOptions, Offload
from . import left
from .adopt import adopt, fits_name
from .bridge import Bridge
from .change import TapChange
from .claims import Claims
from .naming import Rules
from .requests import LocalRequests, Requests
from .settings import MTU_MAX, MTU_MIN, TapConfig, is_name
from .tap import DEFAULT_NAME, Tap

log = logging.getLogger(__name__)

_MTU = 1500
"""What the kernel gives a new TAP."""
_MAC_TICKS = 300
"""Ticks (60 s) in which udev may overwrite the MAC of a TAP that was just made."""


PlaneMaker = Callable[["TapPort", str], DataPlane]
"""Makes a data plane on an open TAP, for the device of that name."""


class Plane(NamedTuple):
    """What makes the data plane of a device."""

    kind: str
    """What the user calls it."""
    make: PlaneMaker
    reason: str = ""
    """Why it is of that kind, if that was not the user's choice."""


class Ports:
    """The ports of one agent.

    Args:
        rules: the user's rules for the TAPs; they may be replaced.
        plane: makes the data planes of a device for which there is no other.
        keep: leave the TAPs to the next agent when this one ends.
        requests: makes what needs CAP_NET_ADMIN.
    """

    def __init__(
        self,
        rules: Rules,
        *,
        plane: Plane,
        keep: bool = False,
        requests: Requests | None = None,
    ) -> None:
        self.rules = rules
        self.plane = plane
        self.keep = keep
        self.requests = LocalRequests() if requests is None else requests
        self.claims = Claims()
        self._away: dict[str, TapPort] = {}
        """By their marks: ports whose device was unplugged, with their TAPs."""

    def make(self, device: str, plane: Plane | None = None) -> "TapPort":
        """Return the port of a device; it keeps TAP name and number until `close`.

        Args:
            device: its PCI address, or the path of its socket.
            plane: makes its data planes; None: as for other devices.
        """
        return TapPort(self, device, plane or self.plane)

    def put_away(self, mark: str, port: "TapPort") -> None:
        """Keep a port whose device was unplugged, for a device that has its mark."""
        if (before := self._away.pop(mark, None)) is not None:
            before.close()
        self._away[mark] = port

    def take_away(self, mark: str) -> Tap | None:
        """Return the TAP of a device that was unplugged, and is there again."""
        port = self._away.pop(mark, None)
        return port.give_tap() if port is not None else None

    def free_name(self, name: str) -> None:
        """Remove the TAP of a device that was unplugged, if it has this name."""
        for port in [port for port in self._away.values() if port.name == name]:
            port.close()

    def make_way(self, ports: Iterable["TapPort"]) -> None:
        """Have devices give up the names and MACs that others of them are to get.

        Two devices can swap theirs by that: in `TapPort.change` each would wait for the
        other.
        """
        wanted = [(port, config) for port in ports if (config := port.wanted())]
        for port, config in wanted:
            port.make_way(config, [other for one, other in wanted if one is not port])

    def forget(self, port: "TapPort") -> None:
        """Forget a port that was put away."""
        self._away = {one: held for one, held in self._away.items() if held is not port}


class TapPort:
    """The TAP of one device, which `open` makes once the queue pairs are known.

    Args:
        ports: all ports of this agent.
        device: the device's PCI address, or the path of its socket.
        plane: makes its data planes; it may be replaced.
    """

    def __init__(self, ports: Ports, device: str, plane: Plane) -> None:
        self.plane = plane
        self._ports = ports
        self._device = device
        self._tap: Tap | None = None
        self._claims = False
        """Whether a number, a name and a MAC are reserved for the device."""
        self._mark = ""
        """What tells the TAP's device from others, also for the next agent."""
        self._device_name = ""
        """The device's name in the metadata, once the TAP is open."""
        self._config = TapConfig()
        """What the user's rules have made of the TAP."""
        self._bridge: Bridge | None = None
        """The bridge that the user wants the TAP to join."""
        self._bridge_index: int | None = None
        """The bridge that the TAP has joined, or could not join."""
        self._name_before: str | None = None
        """The name that the TAP has given up, while it has got no other."""
        self._carrier = False
        self._options: NetOptions | None = None
        self._unused: Set[int] = frozenset()
        self._mtu = 0
        self._mtu_before = 0
        """The TAP's MTU before the first one that a master was told; 0 if none was."""
        self._told_mtu = 0
        """The MTU that the master was told, also where the user has set another."""
        self._mac: str | None = None
        """The MAC that the TAP must have; None once other programs may change it."""
        self._mac_ticks = 0

    @property
    def kind(self) -> str:
        """What the user calls its data plane."""
        return self.plane.kind

    @property
    def name(self) -> str | None:
        """The name that the TAP has now; None before `open`."""
        return self._tap.name if self._tap else None

    @property
    def bridge(self) -> str | None:
        """The name of the bridge that the TAP is in; None if it is in none."""
        # Asked each time: the user may take the TAP out of the bridge, or rename that.
        with suppress(Unusable, OSError):  # the TAP is gone, which `check` reports
            return self._tap.bridge if self._tap else None
        return None

    @property
    def dropped(self) -> int | None:
        """How many packets the kernel has dropped before we could take them."""
        with suppress(Unusable, OSError):  # as with `bridge`
            return self._tap.dropped if self._tap else None
        return None

    @property
    def carrier(self) -> bool:
        """Whether the TAP has its carrier."""
        return self._carrier

    @property
    def takes_uso(self) -> bool | None:
        """Whether the TAP knows UDP packets with GSO; None before `open`."""
        return self._tap.takes_uso if self._tap else None

    @property
    def fds(self) -> Sequence[int]:
        """A descriptor for each queue pair, which stays ours; none before `open`."""
        return self._tap.fds if self._tap else ()

    def make_plane(self, device: str) -> DataPlane:
        """Make a data plane on the TAP, which is open."""
        return self.plane.make(self, device)

    def open(self, queues: int, name: str) -> None:
        """Make the TAP if there is none.

        Args:
            queues: how many queue pairs.
            name: the device's name in the metadata.

        Raises:
            Unusable: the TAP cannot be made, attached to or set up as the user wants.
        """
        # The flag multi_queue of a TAP cannot change: another number of queue pairs
        # gets another TAP.
        if self._tap and len(self._tap.fds) != queues:
            self._drop_tap()
        if self._tap is None:
            self._claims = True
            config = self._ports.claims.take(self._device, name, self._ports.rules)
            self._mark = left.mark(self._device, name)
            self._device_name = name
            self._tap = self._find(config.name, queues) or self._make(
                config.name, queues, name
            )
            try:
                self._configure(self._tap, config, name)
            except BaseException:
                # Else the next `open` would return the TAP as if it were set up.
                self._drop_tap()
                raise
            log.info("TAP %s for %d queue pair(s)", self._tap.name, queues)

    def _find(self, wanted: str | None, queues: int) -> Tap | None:
        """Return the TAP that the device had before: with us, or with another agent.

        It has what the user has given it since: addresses, routes, a name, a bridge.
        """
        tap = self._ports.take_away(self._mark)
        if tap is not None:
            if fits_name(tap.name, wanted) and len(tap.fds) == queues:
                tap.made = False  # it keeps the MAC that it has, as an earlier agent's
                return tap
            tap.close()
        found = left.find(self._mark)
        if found is None:
            return None
        return adopt(found, wanted, queues, self._ports.requests)

    def _make(self, wanted: str | None, queues: int, name: str) -> Tap:
        requests = self._ports.requests
        self._ports.free_name(name if wanted is None else wanted)
        if wanted is not None:
            return Tap(wanted, queues, requests=requests)
        # The name comes from the hypervisor, which must not choose an interface that
        # the slave has already: hence new=True, and no pattern.
        if is_name(name):
            try:
                return Tap(name, queues, new=True, requests=requests)
            except Unusable as why:
                log.debug("%s; so the kernel chooses a name", why)
        return Tap(DEFAULT_NAME, queues, requests=requests)

    def _configure(self, tap: Tap, config: TapConfig, name: str) -> None:
        """Give a TAP its settings, and bring it up."""
        self._ports.claims.set_name(self._device, tap.name)
        self._config, self._bridge = config, self._wanted_bridge(name)
        # A TAP that the user made, or an earlier agent, keeps the MAC that it has.
        if config.mac is None and tap.made:
            config = replace(
                config, mac=self._ports.claims.choose_mac(self._device, name)
            )
        if tap.ours:
            tap.leave_when_killed(left.alias(self._mark, self._device))
        # Before the TAP is up: a new TAP that the bridge refuses is never up outside of
        # it.
        if self._bridge is not None:
            self._bridge_index = self._bridge.join(tap)
        tap.configure(config)
        self._mac, self._mac_ticks = config.mac, _MAC_TICKS

    def _wanted_bridge(self, name: str) -> Bridge | None:
        wanted = self._ports.rules.of(name).bridge
        return None if wanted is None else Bridge(wanted)

    def wanted(self) -> TapConfig | None:
        """Return what the user's rules make of the TAP now; None if it cannot be."""
        if self._tap is None or not self._claims:
            return None
        with suppress(Unusable):  # `change` says why
            return self._ports.claims.wanted(
                self._device, self._device_name, self._ports.rules
            )
        return None

    def make_way(self, own: TapConfig, others: Sequence[TapConfig]) -> None:
        """Give up name and MAC if others are to get them, and `change` has new ones.

        Args:
            own: what the user wants of this TAP.
            others: what the user wants of the other TAPs.
        """
        assert self._tap is not None, "its settings are wanted"
        before = self._config
        if own.mac != before.mac and before.mac in [other.mac for other in others]:
            self._ports.claims.give_up_mac(self._device)
        name = self._tap.name
        if _renames(before, own) and name in [other.name for other in others]:
            # With our PID: an agent that is killed here leaves a TAP of such a name.
            # What the kernel refuses here it refuses in `change` as well, with a text.
            with suppress(Unusable, OSError):
                number = self._ports.claims.number(self._device)
                self._rename(self._tap, f"vp{os.getpid()}-{number}")
                self._name_before = name

    def _go_back(self) -> None:
        """Take the name again that the TAP has given up, if it has got no other."""
        before, self._name_before = self._name_before, None
        if self._tap is not None and before is not None:
            with suppress(Unusable, OSError):  # another device has it by now
                self._rename(self._tap, before)

    def change(self) -> TapChange:
        """Bring the TAP to what the user's rules say now; its carrier stays.

        What another program has changed stays, where the rules are as before.
        """
        done = TapChange()
        # A device that is away gets its settings when it comes back.
        if self._tap is None or not self._claims:
            return done
        before = self._config
        try:
            now = self._ports.claims.take(
                self._device, self._device_name, self._ports.rules
            )
        except Unusable as why:
            done.problems.append(told(why))
            self._go_back()
            return done
        self._change_all(self._tap, before, now, done)
        if not done.problems:  # else the next `change` tries all again
            self._config = now
        return done

    def _change_all(
        self, tap: Tap, before: TapConfig, now: TapConfig, done: TapChange
    ) -> None:
        # Addresses leave first: in a bridge they would get no packet.
        for address in before.addresses:
            if address not in now.addresses:
                done.attempt("address", partial(tap.remove_address, address))
        if _renames(before, now):
            done.attempt("tap", partial(self._change_name, tap, str(now.name)))
        bridge = self._wanted_bridge(self._device_name)
        if (bridge and bridge.name) != (self._bridge and self._bridge.name):
            done.attempt("bridge", partial(self._change_bridge, tap, bridge))
        if now.mac != before.mac:
            done.attempt("mac", partial(self._change_mac, tap, now.mac))
        if now.mtu != before.mtu:
            done.attempt("mtu", partial(self._change_mtu, tap, now.mtu))
        for address in now.addresses:
            if address not in before.addresses:
                done.attempt("address", partial(tap.add_address, address))

    def _change_name(self, tap: Tap, name: str) -> None:
        try:
            self._rename(tap, name)
        except (Unusable, OSError):
            self._go_back()
            raise
        self._name_before = None

    def _rename(self, tap: Tap, name: str) -> None:
        tap.rename(name)
        self._ports.claims.set_name(self._device, tap.name)

    def _change_bridge(self, tap: Tap, bridge: Bridge | None) -> None:
        if bridge is None:
            tap.leave_bridge()
            self._bridge_index = None
        else:
            self._bridge_index = bridge.join(tap)
        self._bridge = bridge

    def _change_mac(self, tap: Tap, mac: str | None) -> None:
        if mac is None:
            mac = self._ports.claims.choose_mac(self._device, self._device_name)
        tap.set_mac(mac)
        self._mac = None  # udev has done what it does with new interfaces

    def _change_mtu(self, tap: Tap, mtu: int | None) -> None:
        self._mtu = self._mtu_before = 0
        tap.set_mtu(_MTU if mtu is None else mtu)
        if mtu is None:
            self.follow_mtu(self._told_mtu)

    def set_options(self, options: NetOptions) -> None:
        """Set the header length and offloads that the master's driver negotiated."""
        if self._tap and options != self._options:
            self._tap.set_header_length(options.hdr_len)
            # An older kernel refuses offloads that it does not know, all of them.
            unknown = Offload(0) if self._tap.takes_uso else Offload.USO
            self._tap.set_offloads(options.offloads & ~unknown)
            self._options = options

    def use_queues(self, pairs: Set[int]) -> None:
        """Attach the queues of these pairs and of the first; detach the others.

        Raises:
            Unusable: the TAP was deleted.
        """
        if self._tap is None:
            return
        # The kernel spreads packets over all attached queues.  A packet in the queue of
        # a pair that the master's driver does not use would never be read.  Queue
        # 0 stays: the kernel detaches no queue of a TAP without multi_queue (EINVAL).
        unused = set(range(1, len(self._tap.fds))) - pairs
        # Only what changes: the kernel refuses to attach a queue twice (EINVAL).
        for index in sorted(unused ^ self._unused):
            self._tap.use_queue(index, index not in unused)
        self._unused = unused

    def check(self) -> None:
        """Check that the TAP still exists, and note the name that it has now.

        Raises:
            Unusable: the TAP was deleted.
        """
        if self._tap:
            self._tap.check()
            # Another device may have the old name now.
            self._ports.claims.set_name(self._device, self._tap.name)

    def discard(self, pair: int) -> None:
        """Throw away the packets that wait in a pair's queue for an earlier driver.

        Raises:
            Unusable: the TAP was deleted.
        """
        if self._tap:
            self._tap.discard(pair)

    def set_carrier(self, on: bool) -> None:
        """Turn the TAP's carrier on or off."""
        if self._tap and on != self._carrier:
            self._tap.set_carrier(on)
            self._carrier = on
            log.info("%s: carrier %s", self._tap.name, "on" if on else "off")

    @property
    def idle(self) -> bool:
        """Whether nothing waits for the master, and without a carrier nothing will."""
        with suppress(Unusable):  # then nothing of it can be read either
            return self._tap is None or self._tap.idle
        return True

    def follow_mtu(self, mtu: int) -> None:
        """Set the MTU that the master was told, unless the user set one by a rule.

        Args:
            mtu: 0 if the master was told none: then the TAP gets back the MTU that it
                had before a master was told one.
        """
        self._told_mtu = mtu
        # The MTU as before: what the user has changed by hand since then stays.
        if self._tap is None or self._rules.mtu or mtu == self._mtu:
            return
        told, self._mtu = self._mtu, mtu
        try:
            self._set_mtu(self._tap, mtu, told)
        except Unusable as why:
            log.warning("%s", why)

    @property
    def _rules(self) -> Rules:
        return self._ports.rules.of(self._device_name)

    def _set_mtu(self, tap: Tap, mtu: int, told: int) -> None:
        """Set the MTU `mtu` after the MTU `told`; 0 is none."""
        now = tap.mtu
        if not mtu:
            # Only what we have set: the user may have changed it by hand since then.
            if self._mtu_before and now == told:
                tap.set_mtu(self._mtu_before)
            self._mtu_before = 0
            return
        if not MTU_MIN <= mtu <= MTU_MAX:
            log.warning(
                "%s: the master's MTU %d is outside %d to %d, so the TAP keeps its own",
                *(tap.name, mtu, MTU_MIN, MTU_MAX),
            )
            return
        self._mtu_before = self._mtu_before or now
        tap.set_mtu(mtu)

    def follow_mac(self) -> None:
        """Set the MAC again, once, if another program overwrites it at the start.

        udev gives an interface with a random MAC a lasting one (MACAddressPolicy in a
        .link file).  It reads that the MAC is random, we set ours, and it writes.

        Raises:
            Unusable: the TAP was deleted.
        """
        if self._tap is None or self._mac is None:
            return
        self._mac_ticks -= 1
        mac = self._tap.mac
        if mac != self._mac:
            self._tap.set_mac(self._mac)
            log.warning(
                "%s: another program, probably udev, changed the MAC to %s: it is set "
                "to %s again; a later change stays",
                *(self._tap.name, mac, self._mac),
            )
        if mac != self._mac or not self._mac_ticks:
            self._mac = None

    def follow_bridge(self) -> None:
        """Join the bridge if it was deleted and made again; log if it is gone."""
        # By the bridge's index, not by the TAP's membership: a user may take the TAP
        # out of the bridge, and the agent must not put it back.
        bridge = self._bridge
        if self._tap is None or bridge is None or bridge.index == self._bridge_index:
            return
        # Before `join`: a bridge that refuses is tried and logged once, not at each
        # tick.
        self._bridge_index = bridge.index
        if self._bridge_index is None:
            log.warning(
                "%s: bridge %s is gone: make it again, and the TAP joins it",
                *(self._tap.name, bridge.name),
            )
            return
        try:
            bridge.join(self._tap)
        except Unusable as why:
            log.warning("%s", why)
        else:
            log.info("%s: joined bridge %s again", self._tap.name, bridge.name)

    def follow(self) -> None:
        """Follow what other programs do with the TAP and the bridge."""
        self.follow_bridge()
        self.follow_mac()

    def status(self) -> dict[str, Any]:
        """Return what `vhostpci-guest status -j` says of the TAP."""
        return {
            "data_plane_reason": self.plane.reason,
            "tap": self.name,
            "bridge": self.bridge,
            "carrier": self.carrier,
            "uso": self.takes_uso,
            "tap_dropped": self.dropped,
        }

    def leave(self) -> None:
        """Keep the TAP without a carrier, because the device was unplugged.

        The next device of its name takes it over; `close` removes it.
        """
        with suppress(Unusable):  # another program has removed the TAP
            if self._tap is not None:
                self.use_queues(set(range(len(self._tap.fds))))
                self.set_carrier(False)
                self._ports.put_away(self._mark, self)
        self._release()

    def _release(self) -> None:
        # Once: another device may be in this slot by the time that `close` is called.
        if self._claims:
            self._claims = False
            self._ports.claims.release(self._device)

    def give_tap(self) -> Tap | None:
        """Give the TAP away; this port has none any more."""
        tap, self._tap = self._tap, None
        return tap

    def close(self) -> None:
        """Close the TAP, which removes one of ours; release its number.

        An agent that keeps its TAPs leaves it to the next one.
        """
        self._ports.forget(self)
        self._drop_tap(keep=self._ports.keep)
        self._release()

    def _drop_tap(self, *, keep: bool = False) -> None:
        if self._tap:
            self._tap.close(keep=keep)
            # The next TAP starts with none of these set, and must get all of them.
            self._tap, self._carrier, self._options, self._mtu = None, False, None, 0
            self._mtu_before, self._mac = 0, None
            self._unused = frozenset()


def _renames(before: TapConfig, now: TapConfig) -> bool:
    """Whether the TAP gets another name when the user's rules change so."""
    return now.name not in (None, before.name) and "%d" not in str(now.name)
