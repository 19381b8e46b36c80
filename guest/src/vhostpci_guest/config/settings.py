# SPDX-License-Identifier: Apache-2.0
"""What the user has set: for the agent, and for each device by its name.

`make_settings` makes it of the values of options, wherever they come from: the command
line has them for all devices, a file also for each device.
"""

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vhostpci_shared.errors import Problem

from ..dataplane import tx_methods
from ..dataplane.vhost_user.place import Place
from ..errors import Unusable
from ..pci.binding_names import AUTO
from ..privileges.user import User
from ..tap.naming import Rules
from .data_plane import AUTOMATIC, Choice
from .options import OPTIONS

Values = Mapping[str, Any]
"""The values of options, by their names; what is absent is not set."""

_OF_TAP = ("tap", "bridge", "mtu", "mac")
_OF_PLANE = ("data-plane", "cpus", "tx-method", "poll-us")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneSettings:
    """What moves a device's packets."""

    data_plane: Choice = AUTOMATIC
    cpus: frozenset[int] | None = None
    tx_method: str = tx_methods.AUTO
    poll_us: int = 0

    def changes(self, other: "PlaneSettings") -> list[str]:
        """Return the names of the options in which another one differs."""
        fields = {name: name.replace("-", "_") for name in _OF_PLANE}
        return [
            name
            for name, one in fields.items()
            if getattr(self, one) != getattr(other, one)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that the user has set."""

    pci_device: str | None = None
    socket: Path | None = None
    bind: str = AUTO
    user: User | None = None
    keep_tap: bool = False
    rules: Rules = field(default_factory=Rules)
    """For the TAPs."""
    plane: PlaneSettings = field(default_factory=PlaneSettings)
    """For each device without a value."""
    own_planes: Mapping[str, PlaneSettings] = field(default_factory=dict)

    def plane_of(self, name: str) -> PlaneSettings:
        """Return what moves the packets of the device of that name."""
        return self.own_planes.get(name, self.plane)

    @property
    def planes(self) -> list[PlaneSettings]:
        """The settings of all data planes that a device may get."""
        return [self.plane, *self.own_planes.values()]

    def place_of(self, name: str) -> Place:
        """Return where the socket of a device's back-end is.

        Raises:
            Unusable: the device has another data plane.
        """
        place = self.plane_of(name).data_plane.place
        if place is None:
            raise Unusable(
                f"the device {name!r} has no data plane with a socket", code="G049"
            )
        return place

    @property
    def bridges(self) -> list[str]:
        """The names of all bridges that a TAP may join."""
        rules: list[Rules] = [self.rules, *self.rules.own.values()]
        # In the order of the file, each once.
        return list(dict.fromkeys(rule.bridge for rule in rules if rule.bridge))

    def needs_restart(self, other: "Settings") -> list[str]:
        """Return the names of options that another one has changed, and may not."""
        names = [one.name for one in OPTIONS.values() if one.of_agent]
        names.remove("keep-tap")
        fields = {name: name.replace("-", "_") for name in names}
        return [
            name
            for name, one in fields.items()
            if getattr(self, one) != getattr(other, one)
        ]


def make_settings(values: Values, own: Mapping[str, Values] | None = None) -> Settings:
    """Return the settings, given parsed values.

    Args:
        values: for the agent, and for each device without a value.
        own: what devices have in their place, by their names.
    """
    own = own or {}
    plane = _plane(PlaneSettings(), values)
    rules = _rules(Rules(), values)
    fields = {
        name.replace("-", "_"): values[name]
        for name, option in OPTIONS.items()
        if option.of_agent and name in values
    }
    return Settings(
        **fields,
        rules=replace(
            rules, own={name: _rules(rules, one) for name, one in own.items()}
        ),
        plane=plane,
        own_planes={
            name: _plane(plane, one)
            for name, one in own.items()
            if not one.keys().isdisjoint(_OF_PLANE)
        },
    )


def _plane(default: PlaneSettings, values: Values) -> PlaneSettings:
    fields = {
        name.replace("-", "_"): values[name] for name in _OF_PLANE if name in values
    }
    return replace(default, **fields)


def _rules(default: Rules, values: Values) -> Rules:
    fields = {name: values[name] for name in _OF_TAP if name in values}
    if "address" in values:
        fields["addresses"] = tuple(values["address"])
    return replace(default, **fields)


def contradictions(
    rules: Rules, plane: PlaneSettings, given: Set[str]
) -> Iterator[Problem]:
    """Yield each option that does not fit the others of a device, and why.

    Args:
        rules: for its TAP.
        plane: what moves its packets.
        given: names of the options that were set for it, and not for all devices.
    """
    yield from plane.data_plane.misfits(given)
    # The kernel would accept both, but gives no packet to an address of such a TAP: the
    # bridge takes each packet that arrives there.
    if rules.bridge and rules.addresses and not given.isdisjoint(("bridge", "address")):
        yield Problem(
            "address",
            f"not with bridge {rules.bridge}: a TAP in a bridge has no address; give "
            f"it to the bridge: ip address add CIDR dev {rules.bridge}",
            code="G050",
        )
