# SPDX-License-Identifier: Apache-2.0
"""The bridge that TAPs join, in a real network namespace."""

import json
from typing import Any

import pytest

from tests.fakes.netns import ip, private_network
from vhostpci_guest.errors import Unusable
from vhostpci_guest.tap.bridge import Bridge, parse_bridge
from vhostpci_guest.tap.tap import Tap

pytestmark = pytest.mark.usefixtures("network")


def link(name: str) -> Any:
    """Return what ip(8) reports of an interface."""
    return json.loads(ip("-j", "-d", "link", "show", name))[0]


def test_bridge_is_made_so_that_ports_forward_at_once() -> None:
    Bridge("br0").make()
    shown = link("br0")
    options = shown["linkinfo"]["info_data"]
    assert "UP" in shown["flags"]
    assert (options["stp_state"], options["forward_delay"]) == (0, 0)


def test_bridge_keeps_its_mac_when_taps_join() -> None:
    bridge = Bridge("br0")
    bridge.make()
    before = link("br0")["address"]
    tap = Tap("tap0", 1)
    ip("link", "set", "tap0", "address", "00:00:00:00:00:01")
    bridge.join(tap)
    assert link("br0")["address"] == before
    tap.close()


def test_bridges_of_two_slaves_on_one_machine_have_different_macs() -> None:
    macs = []
    for _ in range(2):
        with private_network():
            Bridge("br0").make()
            macs.append(link("br0")["address"])
    assert macs[0] != macs[1]


def test_bridge_that_was_deleted_gets_the_same_mac_from_the_next_agent() -> None:
    macs = []
    for _ in range(2):
        Bridge("br0").make()
        macs.append(link("br0")["address"])
        ip("link", "del", "br0")
    assert macs[0] == macs[1]


def test_bridge_made_by_the_user_is_not_changed() -> None:
    ip("link", "add", "br0", "type", "bridge", "stp_state", "1")
    before = link("br0")
    Bridge("br0").make()
    assert link("br0") == before


@pytest.mark.parametrize(("name", "kind"), [("lo", "a card"), ("tap0", "tun")])
def test_interface_that_is_not_a_bridge_is_refused(name: str, kind: str) -> None:
    tap = Tap("tap0", 1)
    for do in (Bridge(name).make, lambda: Bridge(name).join(tap)):
        with pytest.raises(Unusable, match=f"{name} is no bridge but {kind}: choose"):
            do()
    tap.close()


def test_deleted_bridge_is_not_made_again_when_a_tap_joins() -> None:
    tap = Tap("tap0", 1)
    with pytest.raises(Unusable, match=r"br0 is gone: make it again \(ip link add"):
        Bridge("br0").join(tap)
    tap.close()


@pytest.mark.parametrize("name", ["", "a" * 16, "a/b", "br%d"])
def test_name_of_no_bridge_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a bridge"):
        parse_bridge(name)
