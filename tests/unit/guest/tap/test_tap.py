# SPDX-License-Identifier: Apache-2.0
"""The TAP: its arguments, and a real one where the machine has TAPs."""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.netns import ip
from vhostpci_guest.errors import Unusable
from vhostpci_guest.net_options import Offload
from vhostpci_guest.tap import tap
from vhostpci_guest.tap.tap import Tap, TapConfig


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("TUNSETIFF", 0x400454CA),
        ("TUNSETOFFLOAD", 0x400454D0),
        ("TUNGETIFF", 0x800454D2),
        ("TUNSETVNETHDRSZ", 0x400454D8),
        ("TUNSETQUEUE", 0x400454D9),
        ("TUNSETCARRIER", 0x400454E2),
    ],
)
def test_ioctl_number_is_the_kernels(name: str, number: int) -> None:
    assert getattr(tap, name) == number


@pytest.mark.parametrize("name", ["vp0", "vp%d", "a" * 15, "net-0.1", "netz\u00fc"])
def test_name_that_the_kernel_takes_is_taken(name: str) -> None:
    assert tap.parse_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "a" * 16, "\u00fc" * 8, "a/b", "a b", "a:b", ".", "..", "%s", "%d%d", "a\n"],
)
def test_name_that_the_kernel_refuses_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no interface name"):
        tap.parse_name(name)


def test_mac_is_written_as_the_kernel_does() -> None:
    assert tap.parse_mac("02:00:00:AB:cd:01") == "02:00:00:ab:cd:01"


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
        tap.parse_mac(mac)


@pytest.mark.parametrize("mtu", ["", "67", "65522", "-1", "x", "1e3"])
def test_mtu_that_no_tap_has_is_refused(mtu: str) -> None:
    with pytest.raises(ValueError, match="MTU"):
        tap.parse_mtu(mtu)


def test_mtu_may_be_the_smallest_and_the_largest() -> None:
    assert [tap.parse_mtu(text) for text in ("68", "65521")] == [68, 65521]


@pytest.mark.parametrize("text", ["10.0.0.1/24", "fd00::1/64", "192.0.2.1/32"])
def test_address_keeps_its_prefix(text: str) -> None:
    assert str(tap.parse_address(text)) == text


@pytest.mark.parametrize("text", ["10.0.0.1", "10.0.0.256/24", "10.0.0.1/33", "x/24"])
def test_address_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        tap.parse_address(text)


@given(st.text())
def test_any_text_is_an_argument_or_refused(text: str) -> None:
    for parse in (tap.parse_name, tap.parse_mac, tap.parse_mtu, tap.parse_address):
        with suppress(ValueError):
            parse(text)


def test_missing_node_is_explained(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="modprobe tun"):
        Tap("vp0", 1, node=tmp_path / "tun")


def test_tap_is_as_it_was_asked_for(network: None) -> None:
    made = Tap("vp%d", 1)
    config = TapConfig(
        mac="02:00:00:00:00:07",
        mtu=9000,
        addresses=tuple(map(tap.parse_address, ("10.0.0.1/24", "fd00::1/64"))),
    )
    made.configure(config)
    shown = ip("addr", "show", made.name)
    made.close()
    assert made.name == "vp0"
    for part in ("02:00:00:00:00:07", "mtu 9000", "10.0.0.1/24", "fd00::1/64", ",UP"):
        assert part in shown
    assert "vp0" not in ip("link")


def test_carrier_is_off_until_it_is_set(network: None) -> None:
    made = Tap("vp0", 1)
    made.configure(TapConfig())
    assert "NO-CARRIER" in ip("link", "show", "vp0")
    made.set_carrier(True)
    assert "LOWER_UP" in ip("link", "show", "vp0")
    made.close()


def test_header_and_offloads_can_be_set(network: None) -> None:
    made = Tap("vp0", 1)
    made.check()
    made.set_header_length(12)
    made.set_offloads(Offload(15))
    made.close()


def test_tap_with_two_queues_has_two_descriptors(network: None) -> None:
    made = Tap("vp0", 2)
    assert len(set(made.fds)) == 2
    assert "multi_queue" in ip("-d", "link", "show", "vp0")
    made.close()


@pytest.mark.parametrize(
    ("name", "queues", "why"),
    [
        ("busy", 1, "another process has it"),
        ("lo", 1, "is no TAP"),
        ("busy", 2, "is no TAP with multi_queue"),
    ],
)
def test_name_in_use_is_explained(
    network: None, name: str, queues: int, why: str
) -> None:
    other = Tap("busy", 1)
    with pytest.raises(Unusable, match=f"TAP {name} exists, and {why}"):
        Tap(name, queues)
    other.close()


def test_tap_of_the_user_is_used_and_stays(network: None) -> None:
    ip("tuntap", "add", "mine", "mode", "tap")
    ip("addr", "add", "10.0.0.1/24", "dev", "mine")
    taken = Tap("mine", 1)
    taken.configure(TapConfig(addresses=(tap.parse_address("10.0.0.1/24"),)))
    taken.close()
    assert not taken.made
    assert "10.0.0.1/24" in ip("addr", "show", "mine")


def test_tap_that_somebody_deletes_is_gone(network: None) -> None:
    made = Tap("vp0", 1)
    ip("link", "del", "vp0")
    with pytest.raises(Unusable, match="another program deleted it"):
        made.check()
    made.close()


def test_what_the_kernel_refuses_is_explained(network: None) -> None:
    made = Tap("vp0", 1)
    with pytest.raises(Unusable, match="refuses MTU 70000"):
        made.set_mtu(70000)
    made.close()


def test_copies_of_a_machine_with_uuids_of_their_own_have_different_macs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a VM that was cloned, and so has the machine-id of the first one."""
    macs = []
    for number in ("1", "2", "2"):
        uuid = tmp_path / "product_uuid"
        uuid.write_text(number)
        monkeypatch.setattr(tap, "_PRODUCT_UUID", uuid)
        macs.append(tap.stable_mac("", "net0"))
    assert macs[0] != macs[1] == macs[2]


def test_machines_have_different_macs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two slaves with devices of the same names may be in one network."""
    machine = tmp_path / "machine-id"
    monkeypatch.setattr(tap, "_MACHINE", (machine,))
    macs = []
    for text in ("1", "2", "2"):
        machine.write_text(text)
        macs.append(tap.stable_mac("", "net0"))
    assert macs[0] != macs[1] == macs[2]


@given(st.text(), st.text())
def test_own_mac_is_one_that_a_card_may_have(device: str, name: str) -> None:
    mac = tap.stable_mac(device, name)
    assert tap.parse_mac(mac) == mac
    assert int(mac[:2], 16) & 2  # locally administered
    assert mac != tap.stable_mac(device + "x", name)
