# SPDX-License-Identifier: Apache-2.0
"""Rules for TAPs: what they give each device, and what is refused when."""

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostpci_guest.errors import Unusable
from vhostpci_guest.tap.naming import (
    Rules,
    make_rules,
    parse_address_rule,
    parse_mac_rule,
    parse_tap,
)


def rules(
    tap: str | None = None, macs: tuple[str, ...] = (), addresses: tuple[str, ...] = ()
) -> Rules:
    return make_rules(
        tap=None if tap is None else parse_tap(tap),
        mtu=None,
        macs=list(map(parse_mac_rule, macs)),
        addresses=list(map(parse_address_rule, addresses)),
    )


@pytest.mark.parametrize(
    ("template", "tap"),
    [
        ("vp0", "vp0"),
        ("{name}", "net0"),
        ("vp{n}", "vp3"),
        ("{name}-{n}", "net0-3"),
        ("vp%d", "vp%d"),
        ("a{{b}}", "a{b}"),
    ],
)
def test_template_is_filled(template: str, tap: str) -> None:
    assert rules(template).config("05.0", "net0", 3).name == tap


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{foo}", "{foo} is not known: write {name} or {n}"),
        ("{}", "{} is not known"),
        ("{0}", "{0} is not known"),
        ("{n:03}", "{n} is not known"),
        ("{n!r}", "{n} is not known"),
        ("{name.x}", "{name.x} is not known"),
        ("vp{n", "expected '}'"),
        ("vp}", "encountered in format string"),
        ("a/{n}", "no interface name"),
        ("fifteen-bytes-{n}x", "no interface name"),
        ("", "no interface name"),
    ],
)
def test_bad_template_is_refused_at_the_start(template: str, why: str) -> None:
    with pytest.raises(ValueError, match=r".+") as refusal:
        parse_tap(template)
    assert why in str(refusal.value)


@pytest.mark.parametrize("name", ["twelve-bytes", "a/b", "a b"])
def test_refusal_of_a_device_name_says_what_to_change(name: str) -> None:
    with pytest.raises(Unusable) as refusal:
        rules("tap-{name}").config("05.0", name, 0)
    for part in ("05.0: --tap tap-{name}", name, "write {n}", "another name"):
        assert part in str(refusal.value)


def test_name_of_fifteen_bytes_fits() -> None:
    assert rules("tap-{name}").config("05.0", "eleven-byte", 0).name is not None


def test_addresses_have_the_devices_number() -> None:
    config = rules(addresses=("10.0.{n}.1/24", "fd00:{n}::1/64")).config("", "net0", 12)
    assert list(map(str, config.addresses)) == ["10.0.12.1/24", "fd00:12::1/64"]


def test_a_devices_own_addresses_replace_the_rule() -> None:
    own = rules(addresses=("10.0.{n}.1/24", "net0=192.0.2.1/24", "net0=fd00::1/64"))
    found = [own.config("", name, 5).addresses for name in ("net0", "net1")]
    assert [list(map(str, addresses)) for addresses in found] == [
        ["192.0.2.1/24", "fd00::1/64"],
        ["10.0.5.1/24"],
    ]


def test_number_that_gives_no_valid_address_is_refused() -> None:
    with pytest.raises(Unusable, match=r"05\.0: --address 10\.0\.{n}\.1/24: .*256"):
        rules(addresses=("10.0.{n}.1/24",)).config("05.0", "net0", 256)


def test_mac_has_the_devices_number_in_hexadecimal() -> None:
    config = rules(macs=("02:00:00:00:00:{n}",)).config("", "net0", 255)
    assert config.mac == "02:00:00:00:00:ff"


def test_number_that_gives_no_valid_mac_is_refused() -> None:
    with pytest.raises(Unusable, match="is for 256 devices"):
        rules(macs=("02:00:00:00:00:{n}",)).config("05.0", "net0", 256)


def test_a_devices_own_mac_replaces_the_rule() -> None:
    own = rules(macs=("02:00:00:00:00:{n}", "net0=02:00:00:00:00:AA"))
    macs = [own.config("", name, 1).mac for name in ("net0", "net1")]
    assert macs == ["02:00:00:00:00:aa", "02:00:00:00:00:01"]


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (parse_address_rule, "10.0.{name}.1/24"),
        (parse_address_rule, "10.0.0.{n}"),
        (parse_address_rule, "10.0.{n}.999/24"),
        (parse_address_rule, "=10.0.0.1/24"),
        (parse_address_rule, "net0=10.0.0.1"),
        (parse_address_rule, "net0="),
        (parse_mac_rule, "net0=01:00:00:00:00:01"),
        (parse_mac_rule, "02:00:00:00:00:0{n}"),
        (parse_mac_rule, "02:00:00:00:00:{n"),
    ],
)
def test_bad_rule_is_refused_at_the_start(
    parse: Callable[[str], object], text: str
) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse(text)


def test_two_macs_for_one_device_are_refused() -> None:
    with pytest.raises(ValueError, match="net0 has one already"):
        rules(macs=("net0=02:00:00:00:00:01", "net0=02:00:00:00:00:02"))


def test_two_rules_for_macs_are_refused() -> None:
    with pytest.raises(ValueError, match="for one device's own write NAME=MAC"):
        rules(macs=("02:00:00:00:00:01", "02:00:00:00:00:02"))


@given(st.text())
def test_any_text_is_a_rule_or_refused(text: str) -> None:
    for parse in (parse_tap, parse_mac_rule, parse_address_rule):
        with suppress(ValueError):
            parse(text)


@given(st.text(), st.integers(0, 2000))
def test_any_name_makes_a_tap_or_is_refused(name: str, n: int) -> None:
    with suppress(Unusable):
        rules("{name}", ("02:00:00:00:00:{n}",)).config("05.0", name, n)
