# SPDX-License-Identifier: Apache-2.0
"""TAPs that an agent leaves: the next one goes on with them."""

import socket
from collections.abc import Iterator

import pytest

from tests.fakes.netns import ip
from tests.fakes.plane import NO_PACKETS, opened
from vhostpci_guest.errors import Unusable
from vhostpci_guest.tap import left
from vhostpci_guest.tap.naming import Rules, parse_tap
from vhostpci_guest.tap.tap_port import Ports, TapPort

pytestmark = pytest.mark.usefixtures("network")

PCI, SOCKET = "0000:00:05.0", "/run/net0.ivshmem"


def rules(tap: str | None) -> Rules:
    return Rules(tap=None if tap is None else parse_tap(tap))


def killed(tap: str | None = None, queues: int = 1, device: str = PCI) -> int:
    """Make a TAP as an agent does that is killed then; return the TAP's index."""
    # For the kernel there is no difference: it closes the descriptors.
    port = Ports(rules(tap), keep=True, **NO_PACKETS).make(device)
    port.open(queues, "net0")
    assert port.name is not None
    index = socket.if_nametoindex(port.name)
    port.close()
    return index


@pytest.fixture
def ports() -> Iterator[list[TapPort]]:
    """Ports that are closed after the test."""
    made: list[TapPort] = []
    yield made
    for port in made:
        port.close()


def successor(
    ports: list[TapPort], tap: str | None = None, device: str = PCI
) -> TapPort:
    ports.append(Ports(rules(tap), **NO_PACKETS).make(device))
    return ports[-1]


def names() -> set[str]:
    return {name for _, name in socket.if_nameindex()} - {"lo"}


@pytest.mark.parametrize("queues", [1, 2])
def test_next_agent_finds_the_tap_with_what_the_user_gave_it(
    ports: list[TapPort], queues: int
) -> None:
    index = killed(queues=queues)
    ip("addr", "add", "10.0.0.1/24", "dev", "net0")
    ip("link", "set", "net0", "address", "02:00:00:00:00:09")
    ip("route", "add", "10.1.0.0/16", "via", "10.0.0.2")
    assert "NO-CARRIER" in ip("link", "show", "net0")
    ip("link", "set", "net0", "down", "name", "renamed")
    ip("link", "set", "renamed", "up")
    ip("route", "replace", "10.1.0.0/16", "via", "10.0.0.2")
    port = successor(ports)
    assert len(opened(port, queues, "net0")) == queues
    assert port.name == "renamed"
    assert socket.if_nametoindex("renamed") == index
    shown = ip("addr", "show", "renamed")
    assert "10.0.0.1/24" in shown
    assert "02:00:00:00:00:09" in shown
    assert "10.1.0.0/16" in ip("route")
    port.set_carrier(True)
    port.close()
    assert names() == set(), "an agent that ends removes it"


def test_alias_says_which_device_is_behind_the_tap(ports: list[TapPort]) -> None:
    successor(ports).open(1, "net0")
    assert f"alias vhostpci-guest net0 at {PCI}\n" in ip("link", "show", "net0")


@pytest.mark.parametrize("alias", ["", " at 0000:06:00.7"])
def test_tap_is_found_whatever_address_its_device_had(
    ports: list[TapPort], alias: str
) -> None:
    index = killed()
    # Earlier versions wrote no address.
    ip("link", "set", "net0", "alias", f"vhostpci-guest net0{alias}")
    port = successor(ports)
    port.open(1, "net0")
    assert socket.if_nametoindex("net0") == index
    assert f"net0 at {PCI}" in ip("link", "show", "net0")


def test_device_whose_name_looks_like_an_alias_gets_no_other_ones_tap(
    ports: list[TapPort],
) -> None:
    """The name comes from the hypervisor."""
    index = killed()
    port = successor(ports)
    port.open(1, f"net0 at {PCI}")
    assert socket.if_nametoindex("net0") == index
    assert port.name != "net0"


def test_tap_in_a_bridge_stays_there(ports: list[TapPort]) -> None:
    killed()
    ip("link", "add", "br0", "type", "bridge")
    ip("link", "set", "net0", "master", "br0")
    port = successor(ports)
    port.open(1, "net0")
    assert port.bridge == "br0"


def test_tap_with_another_number_of_queues_is_made_anew(ports: list[TapPort]) -> None:
    index = killed(queues=1)
    port = successor(ports)
    assert len(opened(port, 2, "net0")) == 2
    assert socket.if_nametoindex("net0") != index
    assert names() == {"net0"}


def test_tap_of_a_name_that_is_wanted_no_more_is_removed(ports: list[TapPort]) -> None:
    killed("old")
    successor(ports, "new").open(1, "net0")
    assert names() == {"new"}


@pytest.mark.parametrize("template", ["vp%d", "vp{n}", None])
def test_tap_is_found_by_any_rule_that_allows_its_name(
    ports: list[TapPort], template: str | None
) -> None:
    index = killed(template)
    port = successor(ports, template)
    port.open(1, "net0")
    assert port.name is not None
    assert socket.if_nametoindex(port.name) == index


def test_tap_that_another_agent_has_open_is_left_alone(ports: list[TapPort]) -> None:
    first = successor(ports)
    first.open(2, "net0")
    second = successor(ports)
    second.open(2, "net0")
    assert (first.name, second.name) == ("net0", "vp0")


def test_taps_of_two_daemons_with_one_name_are_not_mixed_up(
    ports: list[TapPort],
) -> None:
    index = killed(device=SOCKET)
    other = successor(ports, device="/run/other/net0.ivshmem")
    other.open(1, "net0")
    assert other.name == "vp0"
    mine = successor(ports, device=SOCKET)
    mine.open(1, "net0")
    assert socket.if_nametoindex("net0") == index


def test_interface_that_is_no_tap_is_not_taken_for_one() -> None:
    text = left.alias(left.mark(PCI, "net0"))
    ip("link", "add", "fake", "type", "bridge")
    ip("link", "set", "fake", "alias", text)
    assert left.find(left.mark(PCI, "net0")) is None


def test_alias_has_room_for_any_path() -> None:
    path = "/" + "s" * 106
    killed(device=path)
    found = left.find(left.mark(path, "net0"))
    assert found is not None
    assert found.name == "net0"
    assert len(left.alias("ü" * 300).encode()) <= left.ALIAS_MAX


def test_tap_that_another_program_removes_first_is_no_failure() -> None:
    killed()
    found = left.find(left.mark(PCI, "net0"))
    assert found is not None
    ip("link", "del", "net0")
    left.remove(found.index)


def test_tap_that_is_deleted_while_its_device_is_away_is_made_again(
    ports: list[TapPort],
) -> None:
    shared = Ports(rules(None), **NO_PACKETS)
    away = shared.make(PCI)
    away.open(1, "net0")
    away.leave()
    ip("link", "del", "net0")
    ports.append(back := shared.make("0000:00:06.0"))
    with pytest.raises(Unusable, match="net0 is gone"):
        back.open(1, "net0")
    back.open(1, "net0")
    assert names() == {"net0"}


def test_slot_that_has_another_device_meanwhile_keeps_its_claims() -> None:
    shared = Ports(rules("vp{n}"), **NO_PACKETS)
    away, back = shared.make(PCI), shared.make(PCI)
    away.open(1, "one")
    away.leave()
    back.open(1, "two")
    away.close()
    other = shared.make("0000:00:06.0")
    other.open(1, "three")
    assert (back.name, other.name) == ("vp0", "vp1")
    for port in (back, other):
        port.close()
