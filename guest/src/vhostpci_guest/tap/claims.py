# SPDX-License-Identifier: Apache-2.0
"""Which device of an agent has which number, TAP name and MAC.

If the user's rules give two devices the same TAP or MAC, the second device is refused,
and the first goes on.
"""

from dataclasses import dataclass

from ..errors import Unusable
from .naming import Rules, Template
from .settings import TapConfig, stable_mac


@dataclass(slots=True)
class _Claim:
    """Number, TAP name and MAC of a device, which no other device may have."""

    label: str
    number: int
    name: str | None = None
    mac: str | None = None


class Claims:
    """The claims of the devices of one agent."""

    def __init__(self) -> None:
        self._held: dict[str, _Claim] = {}

    def take(self, device: str, name: str, rules: Rules) -> TapConfig:
        """Reserve number, TAP name and MAC for a device; return its TAP's settings.

        Args:
            device: its PCI address, or the path of its socket.
            name: the device's name in the metadata.
            rules: what the user has set for all TAPs.

        Raises:
            Unusable: another device has the TAP name or the MAC, or a rule does not fit
                this device.
        """
        # "setdefault": a device that claims again, with other queue pairs, keeps its
        # number, and with it what the rules make of the number.
        claim = self._held.setdefault(device, _Claim("", self._free_number()))
        claim.label = f"{device} ({name!r})"
        config = self.wanted(device, name, rules)
        own = rules.of(name)
        for other in self._others(device):
            if config.name is not None and config.name == other.name:
                raise Unusable(
                    _conflict(claim, other, own.tap, "--tap", config.name), code="G149"
                )
            if config.mac is not None and config.mac == other.mac:
                raise Unusable(
                    _conflict(claim, other, own.mac, "--mac", config.mac), code="G150"
                )
        # After the checks: a device that is refused reserves neither name nor MAC.
        claim.name, claim.mac = config.name, config.mac
        return config

    def wanted(self, device: str, name: str, rules: Rules) -> TapConfig:
        """Return the settings of a device that has a number; reserve nothing.

        Raises:
            Unusable: a rule does not fit this device.
        """
        claim = self._held[device]
        return rules.config(claim.label, name, claim.number)

    def _free_number(self) -> int:
        # The smallest, not the next: numbers stay below the limit of --mac (256)
        # however often devices are plugged and unplugged.
        used = {claim.number for claim in self._held.values()}
        return next(n for n in range(len(used) + 1) if n not in used)

    def _others(self, device: str) -> list[_Claim]:
        return [claim for held, claim in self._held.items() if held != device]

    def number(self, device: str) -> int:
        """Return a device's number."""
        return self._held[device].number

    def set_name(self, device: str, tap: str) -> None:
        """Record the name that a device's TAP has got."""
        # In place of a pattern as vp%d, which the rule gives to every device.
        self._held[device].name = tap

    def give_up_mac(self, device: str) -> None:
        """Let another device have a device's MAC; the device takes another one next."""
        self._held[device].mac = None

    def choose_mac(self, device: str, name: str) -> str:
        """Return a MAC for a device to which the user gives none."""
        # Without the PCI address: a device that is plugged again may get another one,
        # and must keep its MAC.  A socket's path does not change, and tells apart the
        # devices of two daemons that have the same name.
        mac = stable_mac(device if "/" in device else "", name)
        # Two PCI devices of one name: the second needs its address after all.
        if any(mac == other.mac for other in self._others(device)):
            mac = stable_mac(device, name)
        self._held[device].mac = mac
        return mac

    def release(self, device: str) -> None:
        """Make a device's number, TAP name and MAC available to other devices."""
        self._held.pop(device, None)


def _conflict(
    claim: _Claim, other: _Claim, rule: Template | None, option: str, what: str
) -> str:
    example = "--tap vp{n}" if option == "--tap" else "--mac 02:00:00:00:00:{n}"
    return (
        f"{claim.label}: {option} {rule or what} gives it {what}, which "
        f"{other.label} has already: give each its own, as in {example}"
    )
