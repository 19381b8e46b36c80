# SPDX-License-Identifier: Apache-2.0
"""What a user may write for a TAP, and the MAC that is chosen for one."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vhostpci_guest.tap import settings


@pytest.mark.parametrize("name", ["vp0", "vp%d", "a" * 15, "net-0.1", "netz\u00fc"])
def test_name_that_the_kernel_takes_is_taken(name: str) -> None:
    assert settings.parse_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "a" * 16, "\u00fc" * 8, "a/b", "a b", "a:b", ".", "..", "%s", "%d%d", "a\n"],
)
def test_name_that_the_kernel_refuses_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no interface name"):
        settings.parse_name(name)


def test_mac_is_written_as_the_kernel_does() -> None:
    assert settings.parse_mac("02:00:00:AB:cd:01") == "02:00:00:ab:cd:01"


@pytest.mark.parametrize(
    "mac",
    [
        "",
        "02:00:00:00:00",
        "02-00-00-00-00-01",
        "01:00:5e:00:00:01",
        "00:00:00:00:00:00",
    ],
)
def test_mac_that_no_card_has_is_refused(mac: str) -> None:
    with pytest.raises(ValueError, match="MAC"):
        settings.parse_mac(mac)


@pytest.mark.parametrize("mtu", ["", "67", "65522", "-1", "x", "1e3"])
def test_mtu_that_no_tap_has_is_refused(mtu: str) -> None:
    with pytest.raises(ValueError, match="MTU"):
        settings.parse_mtu(mtu)


def test_mtu_may_be_the_smallest_and_the_largest() -> None:
    assert [settings.parse_mtu(text) for text in ("68", "65521")] == [68, 65521]


@pytest.mark.parametrize("text", ["10.0.0.1/24", "fd00::1/64", "192.0.2.1/32"])
def test_address_keeps_its_prefix(text: str) -> None:
    assert str(settings.parse_address(text)) == text


@pytest.mark.parametrize("text", ["10.0.0.1", "10.0.0.256/24", "10.0.0.1/33", "x/24"])
def test_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        settings.parse_address(text)


@given(st.text())
def test_any_text_is_an_argument_or_refused(text: str) -> None:
    for parse in (
        settings.parse_name,
        settings.parse_mac,
        settings.parse_mtu,
        settings.parse_address,
    ):
        with suppress(ValueError):
            parse(text)


def test_copies_of_a_machine_with_different_uuids_have_different_macs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a VM that was cloned, and so has the machine-id of the first one."""
    macs = []
    for number in ("1", "2", "2"):
        uuid = tmp_path / "product_uuid"
        uuid.write_text(number)
        monkeypatch.setattr(settings, "_PRODUCT_UUID", uuid)
        macs.append(settings.stable_mac("", "net0"))
    assert macs[0] != macs[1] == macs[2]


def test_machines_have_different_macs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two slaves with devices of the same names may be in one network."""
    machine = tmp_path / "machine-id"
    monkeypatch.setattr(settings, "_MACHINE", (machine,))
    macs = []
    for text in ("1", "2", "2"):
        machine.write_text(text)
        macs.append(settings.stable_mac("", "net0"))
    assert macs[0] != macs[1] == macs[2]


@given(st.text(), st.text())
def test_own_mac_is_one_that_a_card_may_have(device: str, name: str) -> None:
    mac = settings.stable_mac(device, name)
    assert settings.parse_mac(mac) == mac
    assert int(mac[:2], 16) & 2  # locally administered
    assert mac != settings.stable_mac(device + "x", name)
