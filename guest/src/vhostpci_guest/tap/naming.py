# SPDX-License-Identifier: Apache-2.0
"""The user's rules for the TAPs: their names, MACs and addresses.

A rule is a template.  In it, ``{name}`` is the device's name, and ``{n}`` is the
smallest number that no other device of this agent has.  For MACs and addresses the user
may also write ``NAME=VALUE``, which replaces the rule for the device of that name.

A rule that cannot work for any device is refused at the start (ValueError, a usage
error).  A rule that does not fit one device fails that device only (Unusable).
"""

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from vhostpci_shared.errors import BadValue

from ..errors import Unusable
from .settings import Address, TapConfig, parse_address, parse_mac, parse_name

_NAME, _N = "name", "n"
_MAC_N_MAX = 255  # {n} is one byte of the MAC


@dataclass(frozen=True, slots=True)
class Template:
    """A text that may contain ``{name}`` and ``{n}``; ``{{`` stands for a brace."""

    text: str
    fields: frozenset[str]

    @classmethod
    def parse(cls, text: str, *allowed: str) -> Self:
        """Read a template that may contain the `allowed` fields only.

        Raises:
            BadValue: it contains another field, or the braces do not match.
        """
        wanted = " or ".join(f"{{{field}}}" for field in allowed)
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise BadValue(f"{text!r}: {error}: write {wanted}", code="G121") from None
        fields = set()
        for _literal, name, spec, conversion in parts:
            if name is None:  # the text behind the last field
                continue
            # Neither formats as "{n:03}" nor attributes as "{name.x}": whether they
            # work would show only when a device comes.
            if name not in allowed or spec or conversion:
                raise BadValue(
                    f"{text!r}: {{{name}}} is not known: write {wanted}", code="G122"
                )
            fields.add(name)
        return cls(text, frozenset(fields))

    def fill(self, **values: object) -> str:
        """Return the text with `values` in place of its fields."""
        return self.text.format(**values)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Override:
    """The value that one device has instead of the rule's, as NAME=VALUE."""

    name: str
    value: str

    @property
    def template(self) -> Template:
        """The value as a rule, with no fields in it."""
        return Template(self.value, frozenset())

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


Rule = Template | Override


def parse_tap(text: str) -> Template:
    """Read the rule for the names of TAPs.

    Raises:
        BadValue: the result would be no interface name, whatever the device's name.
    """
    template = Template.parse(text, _NAME, _N)
    # The shortest values: what is too long even with them is too long for all devices.
    parse_name(template.fill(name="x", n=0))
    return template


def parse_mac_rule(text: str) -> Rule:
    """Read the rule for MACs, or the override for one device.

    Raises:
        BadValue: the result would be no MAC.
    """
    return _rule(text, parse_mac, "00")


def parse_address_rule(text: str) -> Rule:
    """Read the rule for an address, or the override for one device.

    Raises:
        BadValue: the result would be no address.
    """
    return _rule(text, parse_address, "0")


def _rule(text: str, parse: Callable[[str], object], n: str) -> Rule:
    # From the right: a device's name may contain "=", a MAC or an address does not.
    name, equals, value = text.rpartition("=")
    if equals:
        if not name:
            raise BadValue(f"{text!r} names no device: write NAME={value}", code="G123")
        parse(value)
        return Override(name, value)
    template = Template.parse(text, _N)
    parse(template.fill(n=n))
    return template


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The settings for all TAPs; None leaves a setting to the kernel or the master."""

    tap: Template | None = None
    bridge: str | None = None
    """The name of the bridge that the TAP joins."""
    mtu: int | None = None
    mac: Template | None = None
    addresses: tuple[Template, ...] = ()
    own: Mapping[str, Self] = field(default_factory=dict)
    """All settings of each device that has a table."""

    def of(self, name: str) -> Self:
        """Return the rules for the device of that name."""
        return self.own.get(name, self)

    def config(self, device: str, name: str, n: int) -> TapConfig:
        """Return the settings of one device's TAP.

        Args:
            device: what an error calls the device: its address and its name.
            name: the device's name in the metadata.
            n: the device's number.

        Raises:
            Unusable: a rule does not fit this device.
        """
        rules = self.of(name)
        return TapConfig(
            name=rules._name(device, name, n),
            mac=rules._mac(device, n),
            mtu=rules.mtu,
            addresses=tuple(_address(device, rule, n) for rule in rules.addresses),
        )

    def _name(self, device: str, name: str, n: int) -> str | None:
        if self.tap is None:
            return None
        # Again, after `parse_tap`: the device's name comes from the hypervisor, and may
        # be too long, or have a character that no interface name may have.
        made = self.tap.fill(name=name, n=n)
        try:
            return parse_name(made)
        except ValueError as why:
            raise Unusable(
                f"{device}: --tap {self.tap}: {why}; shorten the template, write {{n}} "
                "for {name}, or give the device another name on the hypervisor",
                code="G124",
            ) from None

    def _mac(self, device: str, n: int) -> str | None:
        if self.mac is None:
            return None
        if _N in self.mac.fields and n > _MAC_N_MAX:
            raise Unusable(
                f"{device}: --mac {self.mac} is for {_MAC_N_MAX + 1} devices, and this "
                "is one more: leave --mac out, or start another agent",
                code="G125",
            )
        # A byte of a MAC has two digits, as `parse_mac` demands.
        return parse_mac(self.mac.fill(n=f"{n:02x}"))


def _address(device: str, rule: Template, n: int) -> Address:
    try:
        return parse_address(rule.fill(n=n))
    except ValueError as why:
        raise Unusable(
            f"{device}: --address {rule}: {why}: leave more room for {{n}}, or start "
            "another agent",
            code="G126",
        ) from None


def make_rules(
    *,
    tap: Template | None = None,
    bridge: str | None = None,
    mtu: int | None = None,
    macs: Sequence[Rule] = (),
    addresses: Sequence[Rule] = (),
) -> Rules:
    """Separate the rules of the command line from its overrides.

    Raises:
        BadValue: there are two MACs for one device, or two rules for MACs.
    """
    general = [rule for rule in macs if isinstance(rule, Template)]
    if len(general) > 1:
        raise BadValue(
            f"--mac {general[0]} and --mac {general[1]}: there is one rule; for one "
            "device's own write NAME=MAC",
            code="G127",
        )
    rules = Rules(
        tap=tap,
        bridge=bridge,
        mtu=mtu,
        mac=general[0] if general else None,
        addresses=tuple(rule for rule in addresses if isinstance(rule, Template)),
    )
    return replace(rules, own=_own(rules, _overrides(macs), _overrides(addresses)))


def _own(
    rules: Rules, macs: Sequence[Override], addresses: Sequence[Override]
) -> Mapping[str, Rules]:
    """Return the rules of the devices that have some of their own."""
    own: dict[str, Rules] = {}
    for override in macs:
        if override.name in own:
            raise BadValue(
                f"--mac {override}: {override.name} has one already", code="G128"
            )
        own[override.name] = replace(rules, mac=override.template)
    of_device: dict[str, list[Template]] = {}
    for override in addresses:
        # Unlike a MAC, an interface may have several addresses.
        of_device.setdefault(override.name, []).append(override.template)
    for name, templates in of_device.items():
        own[name] = replace(own.get(name, rules), addresses=tuple(templates))
    return own


def _overrides(rules: Sequence[Rule]) -> list[Override]:
    return [rule for rule in rules if isinstance(rule, Override)]
